# GPU support: found, wanted, or skipped with one line that says so. Defines KERNELS_HAVE_CUDA and,
# with NCCL beside the toolkit, COMM_HAVE_NCCL.

set(KERNELS_HAVE_CUDA OFF)
set(COMM_HAVE_NCCL OFF)
add_library(dep_cuda INTERFACE)
add_library(dep_nccl INTERFACE)

if(MUDDPIPE_CUDA STREQUAL "OFF")
    return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    if(MUDDPIPE_CUDA STREQUAL "AUTO")
        message(STATUS "No CUDA compiler: building for the CPU only")
        return()
    endif()
    message(FATAL_ERROR "MUDDPIPE_CUDA=ON, but no CUDA compiler: set CUDACXX to nvcc's path")
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
target_compile_options(mudd_compiler INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall>")
target_compile_definitions(mudd_compiler INTERFACE KERNELS_HAVE_CUDA=1)
target_link_libraries(dep_cuda INTERFACE CUDA::cudart CUDA::cublas CUDA::cublasLt)
set(KERNELS_HAVE_CUDA ON)

find_path(nccl_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(nccl_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(nccl_INCLUDE_DIR AND nccl_LIBRARY)
    target_include_directories(dep_nccl INTERFACE ${nccl_INCLUDE_DIR})
    target_link_libraries(dep_nccl INTERFACE ${nccl_LIBRARY} CUDA::cudart)
    target_compile_definitions(mudd_compiler INTERFACE COMM_HAVE_NCCL=1)
    set(COMM_HAVE_NCCL ON)
endif()
