# Pictures: decoding, resampling, the processors' steps.
foreach(part image resample preprocess)
  avl_test(inputs/${part} ${CMAKE_CURRENT_LIST_DIR}/${part}.c ${CMAKE_CURRENT_LIST_DIR}/image_reference.c
    LINK avl_inputs)
endforeach()
avl_fuzzer(image ${CMAKE_CURRENT_LIST_DIR}/../fuzz/image.c LINK avl_inputs
  CORPUS ${CMAKE_CURRENT_LIST_DIR}/data/images)
