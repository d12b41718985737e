avl_test(inputs/tokenizer tokenizer.c LINK avl_inputs)
avl_test(inputs/tokenizer_hostile tokenizer_hostile.c LINK avl_inputs)
avl_test(inputs/prompt prompt.c LINK avl_inputs)
avl_fuzzer(tokenizer ${CMAKE_SOURCE_DIR}/tests/fuzz/tokenizer.c LINK avl_inputs
  CORPUS ${CMAKE_CURRENT_SOURCE_DIR}/data/fuzz-tokenizer)
