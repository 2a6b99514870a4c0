# GPU support: found, wanted, or skipped with one line that says so. Defines KERNELS_HAVE_CUDA and,
# with NCCL beside the toolkit, COMM_HAVE_NCCL; with cuDNN's and cudnn-frontend's headers,
# KERNELS_HAVE_CUDNN.

set(KERNELS_HAVE_CUDA OFF)
set(KERNELS_HAVE_CUDNN OFF)
set(COMM_HAVE_NCCL OFF)
add_library(dep_cuda INTERFACE)
add_library(dep_cudnn INTERFACE)
add_library(dep_nccl INTERFACE)

if(MUDDPIPE_CUDA STREQUAL "OFF")
    return()
endif()
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
if(MUDDPIPE_CUDA STREQUAL "AUTO" AND NOT cuda_sources)
    message(STATUS "No GPU kernels in this tree: building for the CPU only")
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
# cuBLASLt is loaded when a GPU is first used: it is large.
target_link_libraries(dep_cuda INTERFACE CUDA::cudart ${CMAKE_DL_LIBS})
target_compile_definitions(dep_cuda INTERFACE KERNELS_CUDA_FOLDER="${CUDAToolkit_LIBRARY_DIR}")
set(KERNELS_HAVE_CUDA ON)

# NCCL is loaded when the transport is first asked for: machines without it start the same program.
find_path(nccl_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(nccl_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(nccl_INCLUDE_DIR)
    target_include_directories(dep_nccl SYSTEM INTERFACE ${nccl_INCLUDE_DIR})
    target_link_libraries(dep_nccl INTERFACE CUDA::cudart ${CMAKE_DL_LIBS})
    if(nccl_LIBRARY)
        get_filename_component(nccl_FOLDER ${nccl_LIBRARY} DIRECTORY)
        target_compile_definitions(dep_nccl INTERFACE COMM_NCCL_FOLDER="${nccl_FOLDER}")
    endif()
    target_compile_definitions(mudd_compiler INTERFACE COMM_HAVE_NCCL=1)
    set(COMM_HAVE_NCCL ON)
endif()

# Headers only: cuDNN itself is loaded when a GPU is first used, if it is there.
set(cudnn_frontend_LEAST 1.32) # what the calls were written for
set(cudnn_frontend_VERSION 0)
find_path(cudnn_INCLUDE_DIR cudnn_graph.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_path(cudnn_frontend_INCLUDE_DIR cudnn_frontend.h)
mark_as_advanced(cudnn_INCLUDE_DIR cudnn_frontend_INCLUDE_DIR)
if(EXISTS "${cudnn_frontend_INCLUDE_DIR}/cudnn_frontend_version.h")
    file(STRINGS "${cudnn_frontend_INCLUDE_DIR}/cudnn_frontend_version.h" lines
         REGEX "define CUDNN_FRONTEND_(MAJOR|MINOR|PATCH)_VERSION")
    string(REGEX REPLACE "[^0-9;]" "" lines "${lines}")
    list(JOIN lines "." cudnn_frontend_VERSION)
endif()
if(cudnn_INCLUDE_DIR AND cudnn_frontend_INCLUDE_DIR AND NOT "cudnn" IN_LIST MUDDPIPE_WITHOUT)
    if(cudnn_frontend_VERSION VERSION_LESS cudnn_frontend_LEAST)
        message(STATUS "cudnn-frontend ${cudnn_frontend_VERSION} in ${cudnn_frontend_INCLUDE_DIR}: "
                       "${cudnn_frontend_LEAST} or newer is needed")
    else()
        target_include_directories(dep_cudnn SYSTEM INTERFACE ${cudnn_frontend_INCLUDE_DIR}
                                   ${cudnn_INCLUDE_DIR})
        target_compile_definitions(mudd_compiler INTERFACE KERNELS_HAVE_CUDNN=1)
        set(KERNELS_HAVE_CUDNN ON)
    endif()
endif()
