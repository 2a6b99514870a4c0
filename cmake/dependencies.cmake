# Foreign libraries, each behind one interface target dep_<name> that only its room links. Everything
# is looked for below CMAKE_PREFIX_PATH and PKG_CONFIG_PATH first, so that no root is needed.
#
# An optional library that is found defines <ROOM>_HAVE_<NAME>=1 for the whole project; one that is
# not leaves the macro undefined and its source files out of the build.

find_package(PkgConfig REQUIRED)

macro(declare_optional name target macro_name)
    add_library(dep_${name} INTERFACE)
    if(TARGET ${target} AND NOT ${name} IN_LIST MUDDPIPE_WITHOUT)
        target_link_libraries(dep_${name} INTERFACE ${target})
        target_compile_definitions(mudd_compiler INTERFACE ${macro_name}=1)
        set(${macro_name} ON)
    else()
        set(${macro_name} OFF)
    endif()
endmacro()

# A library without configuration files: sets target `found_<name>` if header and library exist.
function(find_plain name header)
    find_path(${name}_INCLUDE_DIR ${header} PATH_SUFFIXES ${ARGN})
    find_library(${name}_LIBRARY ${name})
    mark_as_advanced(${name}_INCLUDE_DIR ${name}_LIBRARY)
    if(${name}_INCLUDE_DIR AND ${name}_LIBRARY)
        add_library(found_${name} INTERFACE IMPORTED GLOBAL)
        target_include_directories(found_${name} INTERFACE ${${name}_INCLUDE_DIR})
        target_link_libraries(found_${name} INTERFACE ${${name}_LIBRARY})
    endif()
endfunction()

# ---- required ----

pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-0.1)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
find_program(PROTOC_C protoc-c REQUIRED DOC "compiler of protobuf-c")
find_package(MPI REQUIRED COMPONENTS C)
add_library(dep_yaml INTERFACE)
target_link_libraries(dep_yaml INTERFACE PkgConfig::YAML)
add_library(dep_jansson INTERFACE)
target_link_libraries(dep_jansson INTERFACE PkgConfig::JANSSON)
add_library(dep_xxhash INTERFACE)
target_link_libraries(dep_xxhash INTERFACE PkgConfig::XXHASH)
add_library(dep_zstd INTERFACE)
target_link_libraries(dep_zstd INTERFACE PkgConfig::ZSTD)
add_library(dep_protobuf INTERFACE)
target_link_libraries(dep_protobuf INTERFACE PkgConfig::PROTOBUF_C)
add_library(dep_mpi INTERFACE)
target_link_libraries(dep_mpi INTERFACE MPI::MPI_C)

# ---- optional ----

# UCX's CMake files follow the folder they lie in; its pkg-config file may name another prefix.
find_package(ucx CONFIG QUIET)
if(TARGET ucx::ucp)
    add_library(found_ucx INTERFACE IMPORTED)
    target_link_libraries(found_ucx INTERFACE ucx::ucp ucx::ucs)
    declare_optional(ucx found_ucx COMM_HAVE_UCX)
else()
    pkg_check_modules(UCX QUIET IMPORTED_TARGET ucx)
    declare_optional(ucx PkgConfig::UCX COMM_HAVE_UCX)
endif()

# oneDNN's CMake files ask for OpenCL even where the library does without it.
find_plain(dnnl dnnl.h)
declare_optional(dnnl found_dnnl KERNELS_HAVE_DNNL)

pkg_search_module(OPENBLAS QUIET IMPORTED_TARGET openblas openblas64 cblas)
declare_optional(openblas PkgConfig::OPENBLAS KERNELS_HAVE_OPENBLAS)

# ---- GPU ----

include(cuda)
