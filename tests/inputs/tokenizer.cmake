avl_test(inputs/tokenizer tokenizer.c LINK avl_inputs)
avl_test(inputs/tokenizer_hostile tokenizer_hostile.c LINK avl_inputs)
