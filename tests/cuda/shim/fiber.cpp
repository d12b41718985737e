/* tests/cuda/shim/fiber.cpp: a switch saves what a called function must preserve and changes the
 * stack; the sanitizers are told of both stacks. */
#include "tests/cuda/shim/fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda/shim/cuda_runtime.h"

#ifdef AVL_SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 256 << 10 };
#else
enum { STACK_BYTES = 64 << 10 };
#endif

#if defined(__x86_64__)

extern "C" void avl_fiber_switch_stack(void **from, void *to);
asm(".text\n"
    ".globl avl_fiber_switch_stack\n"
    ".hidden avl_fiber_switch_stack\n"
    ".type avl_fiber_switch_stack, @function\n"
    "avl_fiber_switch_stack:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size avl_fiber_switch_stack, . - avl_fiber_switch_stack\n");

static void prepare_stack(avl_fiber *fiber, void (*main)(void)) {
    /* Six saved registers, the address to return to, and one word that keeps the alignment. */
    uintptr_t *top = (uintptr_t *)(fiber->stack + fiber->mapped_bytes) - 8;
    for (int i = 0; i < 8; i++)
        top[i] = 0;
    top[6] = (uintptr_t)main;
    fiber->point.stack_pointer = top;
}

static void switch_stack(avl_fiber_point *from, avl_fiber_point *to) {
    avl_fiber_switch_stack(&from->stack_pointer, to->stack_pointer);
}

#else

#include <ucontext.h>

static void prepare_stack(avl_fiber *fiber, void (*main)(void)) {
    ucontext_t *context = (ucontext_t *)fiber->point.context;
    getcontext(context);
    context->uc_stack.ss_sp = (void *)fiber->point.stack_bottom;
    context->uc_stack.ss_size = fiber->point.stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, main, 0);
}

static void switch_stack(avl_fiber_point *from, avl_fiber_point *to) {
    if (from->context == nullptr)
        from->context = calloc(1, sizeof(ucontext_t));
    swapcontext((ucontext_t *)from->context, (ucontext_t *)to->context);
}

#endif

int avl_fiber_create(avl_fiber *fiber) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fiber->mapped_bytes = STACK_BYTES + page;
    void *memory = mmap(nullptr, fiber->mapped_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return 0;
    mprotect(memory, page, PROT_NONE);
    fiber->stack = (unsigned char *)memory;
    fiber->point = avl_fiber_point{};
    fiber->point.stack_bottom = fiber->stack + page;
    fiber->point.stack_bytes = STACK_BYTES;
#if !defined(__x86_64__)
    fiber->point.context = calloc(1, 4096);
#endif
    return 1;
}

void avl_fiber_destroy(avl_fiber *fiber) {
#ifdef AVL_SHIM_ASAN
    __asan_unpoison_memory_region(fiber->point.stack_bottom, fiber->point.stack_bytes);
#endif
    munmap(fiber->stack, fiber->mapped_bytes);
    free(fiber->point.context);
}

void avl_fiber_prepare(avl_fiber *fiber, void (*main)(void)) {
#ifdef AVL_SHIM_ASAN
    /* A fiber that was given up in mid-work left its frames' borders behind. */
    __asan_unpoison_memory_region(fiber->point.stack_bottom, fiber->point.stack_bytes);
#endif
    fiber->point.fake_stack = nullptr;
    prepare_stack(fiber, main);
}

void avl_fiber_switch(avl_fiber_point *from, avl_fiber_point *to, avl_fiber_point *host) {
#ifdef AVL_SHIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack_bottom, to->stack_bytes);
    switch_stack(from, to);
    if (from == host) /* back from a fiber, whose borders are known */
        __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
    else
        __sanitizer_finish_switch_fiber(from->fake_stack, &host->stack_bottom, &host->stack_bytes);
#else
    (void)host;
    switch_stack(from, to);
#endif
}

void avl_fiber_arrived(avl_fiber_point *host) {
#ifdef AVL_SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &host->stack_bottom, &host->stack_bytes);
#else
    (void)host;
#endif
}
