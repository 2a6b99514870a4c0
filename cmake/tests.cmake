# Ways to register a test. Exit code 77 means skipped, with the reason printed.

pkg_check_modules(CMOCKA QUIET IMPORTED_TARGET cmocka)
if(NOT CMOCKA_FOUND AND MUDDPIPE_TESTS STREQUAL "AUTO")
    message(STATUS "No cmocka: the unit tests are left out")
elseif(NOT CMOCKA_FOUND)
    message(FATAL_ERROR "MUDDPIPE_TESTS=ON, but pkg-config does not find cmocka")
endif()

# Waiting threads sleep, ranks may share cores, and Open MPI may run as root in a container.
set(test_environment
    MUDDPIPE=${CMAKE_BINARY_DIR}/muddpipe
    MUDDPIPE_SOURCE=${CMAKE_SOURCE_DIR}
    OMP_WAIT_POLICY=passive
    OMPI_ALLOW_RUN_AS_ROOT=1
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_hwloc_base_binding_policy=none
    OMPI_MCA_btl_base_warn_component_unused=0
    UCX_WARN_UNUSED_ENV_VARS=n
    ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:fast_unwind_on_malloc=0
    LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/cmake/leaks.supp:print_suppressions=0
    TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/cmake/races.supp:allocator_may_return_null=1
    UBSAN_OPTIONS=print_stacktrace=1)

# test_defaults(name label [TIMEOUT seconds]): the properties that every test has. GPUs are for those
# with the label gpu; to the others the machine has none, and device=auto is the host.
function(test_defaults name label)
    cmake_parse_arguments(arg "" "TIMEOUT" "" ${ARGN})
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 60)
    endif()
    set(environment ${test_environment})
    if(NOT label STREQUAL "gpu")
        list(APPEND environment CUDA_VISIBLE_DEVICES=)
    endif()
    set_tests_properties(${name} PROPERTIES
        LABELS ${label}
        TIMEOUT ${arg_TIMEOUT}
        SKIP_RETURN_CODE 77
        ENVIRONMENT "${environment}")
endfunction()

# All that `ctest -L gpu` starts: tools/gpu.sh builds this and leaves the other tests' programs out.
add_custom_target(gpu_tests)
if(TARGET muddpipe)
    add_dependencies(gpu_tests muddpipe)
endif()

# test_programs(label command...): a gpu test's programs, from $<TARGET_FILE:...> in its command, belong
# to gpu_tests.
function(test_programs label)
    if(label STREQUAL "gpu")
        string(REGEX MATCHALL "\\$<TARGET_FILE:[^>]+>" programs "${ARGN}")
        list(TRANSFORM programs REPLACE ".*:(.*)>" "\\1")
        foreach(program IN LISTS programs)
            add_dependencies(gpu_tests ${program})
        endforeach()
    endif()
endfunction()

# test_timing(names...): what is read there depends on the moment (processes that are killed while they
# speak, limits in seconds); tools/test.sh tries such tests twice.
function(test_timing)
    set_property(TEST ${ARGN} APPEND PROPERTY LABELS timing)
endfunction()

# What the unit tests of a room link; rooms not named here see all of them.
set(unit_rooms_base base)
set(unit_rooms_kernels kernels)
set(unit_rooms_comm comm)
set(unit_rooms_data data)
set(unit_rooms_schedule schedule model)
set(unit_rooms_model schedule model)

# add_unit(room/thing sources... [TIMEOUT seconds] [LABEL label]): a cmocka program.
function(add_unit name)
    if(NOT CMOCKA_FOUND)
        return()
    endif()
    cmake_parse_arguments(arg "" "TIMEOUT;LABEL" "" ${ARGN})
    if(NOT arg_LABEL)
        set(arg_LABEL unit)
    endif()
    string(REPLACE "/" "_" target test_${name})
    string(REGEX REPLACE "/.*" "" room ${name})
    set(rooms runtime)
    if(unit_rooms_${room})
        set(rooms ${unit_rooms_${room}})
    endif()
    list(TRANSFORM rooms PREPEND mudd_)
    add_executable(${target} ${arg_UNPARSED_ARGUMENTS})
    target_link_libraries(${target} PRIVATE mudd_compiler ${rooms} PkgConfig::CMOCKA)
    target_compile_definitions(${target} PRIVATE TEST_FOLDER="${CMAKE_SOURCE_DIR}/tests")
    add_test(NAME ${name} COMMAND ${target} WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
    test_defaults(${name} ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
    test_programs(${arg_LABEL} $<TARGET_FILE:${target}>)
endfunction()

# add_mpi(name ranks command... [TIMEOUT seconds] [LABEL label]): a command started on so many ranks.
function(add_mpi name ranks)
    cmake_parse_arguments(arg "" "TIMEOUT;LABEL" "" ${ARGN})
    if(NOT arg_LABEL)
        set(arg_LABEL mpi)
    endif()
    add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks}
             ${arg_UNPARSED_ARGUMENTS})
    test_defaults(${name} ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
    test_programs(${arg_LABEL} ${arg_UNPARSED_ARGUMENTS})
    set_tests_properties(${name} PROPERTIES PROCESSORS ${ranks})
endfunction()

# add_script(name command... [TIMEOUT seconds] [LABEL label]): a script that starts $MUDDPIPE itself.
function(add_script name)
    cmake_parse_arguments(arg "" "TIMEOUT;LABEL" "" ${ARGN})
    if(NOT arg_LABEL)
        set(arg_LABEL script)
    endif()
    add_test(NAME ${name} COMMAND ${arg_UNPARSED_ARGUMENTS}
             WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
    test_defaults(${name} ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
    test_programs(${arg_LABEL} ${arg_UNPARSED_ARGUMENTS})
endfunction()
