# The pictures' part of avl_inputs beyond the common list. libwebpdemux comes with libwebp: first frames of animations.
if(TARGET avl_inputs)
  pkg_check_modules(WEBPDEMUX REQUIRED IMPORTED_TARGET libwebpdemux)
  target_link_libraries(avl_inputs PUBLIC PkgConfig::WEBPDEMUX)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/resample_avx2.c)
    target_sources(avl_inputs PRIVATE resample_avx2.c)
  endif()
endif()
