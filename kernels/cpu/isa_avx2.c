#define AVL_ISA_TABLE avl_cpu_avx2
#define AVL_ISA_NAME "avx2"
#define AVL_ISA_LABEL "AVX2 with FMA"
#define AVL_ISA_FAST_DTYPE AVL_DTYPE_BF16
#define AVL_ISA_LIBRARY_F32 1
#define AVL_ISA_LIBRARY_BF16 0
#include "kernels/cpu/isa.inc.h"
