# How every target of this project is built: warnings, sanitizers, and three short functions.

set(AVL_SANITIZE "" CACHE STRING "address (with undefined) or thread; empty for none")
option(AVL_FUZZ "Build the libFuzzer targets (needs clang)" OFF)

add_library(avl_options INTERFACE)
target_include_directories(avl_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(avl_options INTERFACE _GNU_SOURCE AVL_VERSION="${PROJECT_VERSION}")
target_compile_options(avl_options INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
  -Wcast-qual -Wwrite-strings -Wundef -fno-common
  $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>) # texts of errors and logs are cut on purpose
if(AVL_SANITIZE STREQUAL "address")
  target_compile_options(avl_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
    -fno-omit-frame-pointer)
  target_link_options(avl_options INTERFACE -fsanitize=address,undefined)
elseif(AVL_SANITIZE STREQUAL "thread")
  target_compile_options(avl_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(avl_options INTERFACE -fsanitize=thread)
endif()
if(AVL_FUZZ)
  target_compile_options(avl_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# avl_module(NAME SOURCES... [LINK libraries...]): one folder's static library.
function(avl_module name)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  add_library(${name} STATIC ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC avl_options ${arg_LINK})
endfunction()

# avl_program(NAME SOURCES... [LINK libraries...]): an installed program.
function(avl_program name)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE avl_options ${arg_LINK})
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# avl_test(NAME SOURCES... [LINK libraries...] [LABELS labels...] [ARGS arguments...]): a cmocka program
# known to ctest as NAME (for example kernels/linear); the label is `quick` unless others are given.
function(avl_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "LINK;LABELS;ARGS" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS quick)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  string(REPLACE "/" "_" target "test_${name}")
  add_executable(${target} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${target} PRIVATE avl_options ${arg_LINK} cmocka)
  target_compile_definitions(${target} PRIVATE
    AVL_SOURCE_DIR="${CMAKE_SOURCE_DIR}" AVL_BINARY_DIR="${CMAKE_BINARY_DIR}")
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${target} ${arg_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "ASAN_OPTIONS=allocator_may_return_null=1;TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1;UBSAN_OPTIONS=print_stacktrace=1")
endfunction()

# avl_fuzzer(NAME SOURCES... [LINK libraries...] [CORPUS dir]): a libFuzzer target; ctest (label `fuzz`) gives
# it a short run over the corpus. Built under the preset `fuzz` alone.
function(avl_fuzzer name)
  if(NOT AVL_FUZZ)
    return()
  endif()
  cmake_parse_arguments(arg "" "CORPUS;SECONDS" "LINK" ${ARGN})
  if(NOT arg_SECONDS)
    set(arg_SECONDS 20)
  endif()
  add_executable(fuzz_${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(fuzz_${name} PRIVATE avl_options ${arg_LINK} -fsanitize=fuzzer)
  target_compile_definitions(fuzz_${name} PRIVATE
    AVL_SOURCE_DIR="${CMAKE_SOURCE_DIR}" AVL_BINARY_DIR="${CMAKE_BINARY_DIR}")
  set(scratch ${CMAKE_BINARY_DIR}/fuzz/${name})
  file(MAKE_DIRECTORY ${scratch})
  add_test(NAME fuzz/${name}
    COMMAND fuzz_${name} -max_total_time=${arg_SECONDS} -rss_limit_mb=4096 -timeout=20 -max_len=65536
            ${scratch} ${arg_CORPUS})
  set_tests_properties(fuzz/${name} PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()
