# How everything is compiled: the interface target mudd_compiler, linked by every target.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_C_FLAGS_RELEASE "-O3")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g -fno-omit-frame-pointer")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O3 -g")

add_library(mudd_compiler INTERFACE)
target_include_directories(mudd_compiler INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(mudd_compiler INTERFACE _GNU_SOURCE
                           MUDDPIPE_VERSION="${PROJECT_VERSION}")

# Sums must not depend on what a compiler likes to contract: fused operations are written fmaf.
set(c_flags -Wall -Wextra -Wshadow -Wconversion -Werror -ffp-contract=off -fno-math-errno
            -fstack-protector-strong)
if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT MUDDPIPE_SANITIZE)
    list(APPEND c_flags -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
if(NOT MUDDPIPE_OPENMP)
    # What only a pragma uses looks unused.
    list(APPEND c_flags -fopenmp-simd -Wno-unknown-pragmas -Wno-unused-parameter
                        -Wno-unused-variable -Wno-unused-but-set-variable)
endif()
target_compile_options(mudd_compiler INTERFACE "$<$<COMPILE_LANGUAGE:C>:${c_flags}>")

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(mudd_compiler INTERFACE LINKER:-z,relro,-z,now LINKER:--as-needed)
endif()

if(CMAKE_C_COMPILER_ID MATCHES Clang) # for fuzzers; gcc is what warnings are errors of
    target_compile_options(mudd_compiler INTERFACE -Wno-unknown-warning-option -Wno-error)
endif()
if(MUDDPIPE_SANITIZE)
    set(sanitize -fsanitize=${MUDDPIPE_SANITIZE} -fno-sanitize-recover=all
        -Wno-format-truncation) # their checks of null pointers look like null to the compiler
    target_compile_options(mudd_compiler INTERFACE "$<$<COMPILE_LANGUAGE:C>:${sanitize}>")
    target_link_options(mudd_compiler INTERFACE ${sanitize})
endif()

find_package(Threads REQUIRED)
target_link_libraries(mudd_compiler INTERFACE Threads::Threads m)
if(MUDDPIPE_OPENMP)
    find_package(OpenMP REQUIRED COMPONENTS C)
    target_link_libraries(mudd_compiler INTERFACE OpenMP::OpenMP_C)
endif()

# The CPU operations exist once per instruction set; the program picks one when it starts.
set(cpu_isas generic)
set(cpu_flags_generic "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(cpu_isas generic v3 v4)
    set(cpu_flags_v3 -march=x86-64-v3)
    set(cpu_flags_v4 -march=x86-64-v4 -mprefer-vector-width=512)
endif()
