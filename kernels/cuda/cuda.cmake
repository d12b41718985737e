# libavl_cuda.so, when the CUDA toolkit is there: compiled by nvcc through plain commands, so that a host without CUDA
# configures as well. Sanitizers do not reach into it; its sources run under them in tests/cuda.
set(AVL_CUDA AUTO CACHE STRING "Build libavl_cuda.so: AUTO (when nvcc is found), ON or OFF")
set(AVL_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "GPU generations to generate code for; the last also as PTX")
find_program(AVL_NVCC nvcc HINTS /usr/local/cuda/bin ENV CUDA_HOME PATH_SUFFIXES bin)
if(AVL_CUDA STREQUAL "ON" AND NOT AVL_NVCC)
  message(FATAL_ERROR "AVL_CUDA is ON, but there is no nvcc")
elseif(NOT AVL_CUDA OR NOT AVL_NVCC OR AVL_SANITIZE OR AVL_FUZZ)
  message(STATUS "libavl_cuda.so is left out (AVL_CUDA=${AVL_CUDA}, nvcc ${AVL_NVCC}, sanitizer \"${AVL_SANITIZE}\")")
  return()
endif()

get_filename_component(toolkit ${AVL_NVCC} REALPATH)
get_filename_component(toolkit ${toolkit}/../.. ABSOLUTE)
set(flags -O3 -std=c++20 -I${CMAKE_SOURCE_DIR} -D_GNU_SOURCE
  -Xcompiler=-fPIC,-fvisibility=hidden,-fno-threadsafe-statics,-Wall -Werror=all-warnings)
foreach(architecture ${AVL_CUDA_ARCHITECTURES})
  list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
endforeach()
list(GET AVL_CUDA_ARCHITECTURES -1 newest)
list(APPEND flags -gencode=arch=compute_${newest},code=compute_${newest})

file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda)
set(objects)
foreach(name activation add argmax attention blas copy_rows decode_attention device diversity embed kv linear lists norm patches rope round sample text topk)
  set(source ${CMAKE_CURRENT_LIST_DIR}/${name}.cu)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
  add_custom_command(OUTPUT ${object}
    COMMAND ${AVL_NVCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${name}.cu" VERBATIM COMMAND_EXPAND_LISTS)
  list(APPEND objects ${object})
endforeach()

add_library(avl_cuda SHARED ${CMAKE_CURRENT_LIST_DIR}/library.c ${CMAKE_CURRENT_LIST_DIR}/../cpu/check.c ${objects})
target_link_libraries(avl_cuda PRIVATE avl_options
  -L${toolkit}/lib64 -lcublasLt -lcudart_static -ldl -lrt -lpthread)
target_link_options(avl_cuda PRIVATE -Wl,--no-undefined)
target_compile_options(avl_cuda PRIVATE -fvisibility=hidden)
# Beside the programs, where the loader of kernels/device.c looks first.
set_target_properties(avl_cuda PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}
  BUILD_RPATH ${toolkit}/lib64 INSTALL_RPATH "$ORIGIN;${toolkit}/lib64" LINKER_LANGUAGE C)
install(TARGETS avl_cuda LIBRARY DESTINATION bin)
