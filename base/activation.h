/* base/activation.h: the activation functions that checkpoints name and kernels compute. */
#ifndef AVL_BASE_ACTIVATION_H
#define AVL_BASE_ACTIVATION_H

typedef enum avl_activation {
    AVL_ACTIVATION_NONE,
    AVL_ACTIVATION_GELU,       /* x/2 (1 + erf(x/sqrt 2)) */
    AVL_ACTIVATION_GELU_TANH,  /* tanh approximation: "gelu_pytorch_tanh", "gelu_new" */
    AVL_ACTIVATION_QUICK_GELU, /* x sigmoid(1.702 x) */
    AVL_ACTIVATION_SILU,       /* x sigmoid(x) */
    AVL_ACTIVATION_RELU,
} avl_activation_t;

#endif
