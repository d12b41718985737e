avl_test(inputs/tokenizer tokenizer.c LINK avl_inputs)
