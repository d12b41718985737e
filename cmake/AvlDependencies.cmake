# Every library from outside, found once. deploy/install-dependencies installs them on Debian 12.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)
find_package(MPI REQUIRED COMPONENTS C)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.12)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(PNG REQUIRED IMPORTED_TARGET libpng)
pkg_check_modules(JPEG REQUIRED IMPORTED_TARGET libjpeg)
pkg_check_modules(WEBP REQUIRED IMPORTED_TARGET libwebp)
pkg_check_modules(WEBPDEMUX REQUIRED IMPORTED_TARGET libwebpdemux) # first frames of animations
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto>=3.0)
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.73)
pkg_check_modules(CAIRO REQUIRED IMPORTED_TARGET cairo-png)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)

# oneDNN: through its C API alone.
find_path(DNNL_INCLUDE dnnl.h REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(avl_dnnl INTERFACE)
target_include_directories(avl_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE})
target_link_libraries(avl_dnnl INTERFACE ${DNNL_LIBRARY})

# gRPC C core needs libgrpc and libgpr only; pkg-config would name some sixty C++ libraries.
find_path(GRPC_INCLUDE grpc/grpc.h REQUIRED)
find_library(GRPC_LIBRARY grpc REQUIRED)
find_library(GPR_LIBRARY gpr REQUIRED)
add_library(avl_grpc INTERFACE)
target_include_directories(avl_grpc SYSTEM INTERFACE ${GRPC_INCLUDE})
target_link_libraries(avl_grpc INTERFACE ${GRPC_LIBRARY} ${GPR_LIBRARY} Threads::Threads)

find_program(PROTOC protoc REQUIRED)
find_program(PROTOC_C protoc-gen-c REQUIRED)
