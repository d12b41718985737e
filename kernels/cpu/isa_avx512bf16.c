#define AVL_ISA_TABLE avl_cpu_avx512bf16
#define AVL_ISA_NAME "avx512bf16"
#define AVL_ISA_LABEL "AVX-512 with bf16"
#define AVL_ISA_FAST_DTYPE AVL_DTYPE_BF16
#define AVL_ISA_LIBRARY_F32 1
#define AVL_ISA_LIBRARY_BF16 1
#include "kernels/cpu/isa.inc.h"
