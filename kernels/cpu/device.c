/* kernels/cpu/device.c: opening the CPU device: which instructions, how many threads, how much
 * memory. */
#include "kernels/cpu/device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "kernels/cpu/matmul.h"

enum { THREADS_MAX = 4096 };

static const size_t memory_alignment_bytes = 256;
static const size_t huge_page_bytes = 2 << 20;

/* Best first. */
static const avl_cpu_kernels_t *const tables[] = {
#ifdef AVL_CPU_X86
    &avl_cpu_avx512bf16,
    &avl_cpu_avx512,
    &avl_cpu_avx2,
#endif
    &avl_cpu_portable,
};
enum { TABLE_COUNT = sizeof tables / sizeof tables[0] };

/* The compiler's support functions also ask the system whether it saves the registers. */
int avl_cpu_supports(const avl_cpu_kernels_t *kernels) {
#ifdef AVL_CPU_X86
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (kernels == &avl_cpu_avx2)
        return avx2;
    if (kernels == &avl_cpu_avx512)
        return avx512;
    if (kernels == &avl_cpu_avx512bf16)
        return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return kernels == &avl_cpu_portable;
}

static avl_status_t choose_table(const char *isa, const avl_cpu_kernels_t **kernels_p) {
    for (int i = 0; i < TABLE_COUNT; i++) {
        if (isa != NULL && strcmp(isa, tables[i]->name) != 0)
            continue;
        if (avl_cpu_supports(tables[i])) {
            *kernels_p = tables[i];
            return AVL_OK;
        }
        if (isa != NULL) {
            return avl_fail(AVL_ERR_UNSUPPORTED,
                            "cpu device: this machine does not run the instruction set \"%s\"",
                            isa);
        }
    }
    return avl_fail(AVL_ERR_UNSUPPORTED,
                    "cpu device: no instruction set \"%s\"; there are \"portable\", \"avx2\", "
                    "\"avx512\" and \"avx512bf16\"",
                    isa);
}

/* Reads one or two numbers of a one-line file of the system; returns how many it found. */
static int read_numbers(const char *path, unsigned long long *first, unsigned long long *second) {
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    int found = fscanf(file, "%llu %llu", first, second);
    fclose(file);
    return found > 0 ? found : 0;
}

/* The cores this process may be scheduled on, or fewer when a container's share of time is smaller.
 */
static int usable_threads(void) {
    int threads = 1;
    cpu_set_t *set = CPU_ALLOC(THREADS_MAX);
    if (set != NULL) {
        if (sched_getaffinity(0, CPU_ALLOC_SIZE(THREADS_MAX), set) == 0)
            threads = CPU_COUNT_S(CPU_ALLOC_SIZE(THREADS_MAX), set);
        CPU_FREE(set);
    }
    unsigned long long quota = 0, period = 0;
    if (read_numbers("/sys/fs/cgroup/cpu.max", &quota, &period) == 2 && period > 0) {
        unsigned long long share = (quota + period - 1) / period;
        if (share > 0 && share < (unsigned long long)threads)
            threads = (int)share;
    }
    return threads < 1 ? 1 : threads;
}

static size_t available_memory(void) {
    unsigned long long available = 0, limit = 0, used = 0, unused = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file != NULL) {
        char line[128];
        while (fgets(line, sizeof line, file) != NULL) {
            if (sscanf(line, "MemAvailable: %llu", &available) == 1)
                break;
        }
        fclose(file);
    }
    size_t bytes = (size_t)available * 1024;
    if (read_numbers("/sys/fs/cgroup/memory.max", &limit, &unused) >= 1 &&
        read_numbers("/sys/fs/cgroup/memory.current", &used, &unused) >= 1) {
        size_t rest = limit > used ? (size_t)(limit - used) : 0;
        bytes = rest < bytes ? rest : bytes;
    }
    return bytes;
}

avl_status_t avl_scratch_reserve(avl_scratch_t *scratch, size_t bytes, const char *what) {
    if (bytes <= scratch->bytes)
        return AVL_OK;
    void *memory = NULL;
    AVL_TRY(avl_alloc_aligned(bytes, 1, what, &memory));
    free(scratch->memory);
    scratch->memory = memory;
    scratch->bytes = bytes;
    return AVL_OK;
}

avl_status_t avl_scratch_reserve_threads(avl_cpu_device_t *cpu, size_t bytes) {
    for (int i = 0; i < cpu->device.info.threads; i++)
        AVL_TRY(avl_scratch_reserve(&cpu->thread_scratch[i], bytes, "a thread's scratch memory"));
    return AVL_OK;
}

void avl_scratch_account(avl_cpu_device_t *cpu) {
    size_t bytes = cpu->shared_scratch.bytes + cpu->place_scratch.bytes;
    for (int i = 0; i < cpu->device.info.threads; i++)
        bytes += cpu->thread_scratch[i].bytes;
    cpu->device.workspace_bytes = bytes;
}

static void close_device(avl_device_t *device) {
    avl_cpu_device_t *cpu = avl_cpu_device(device);
    if (cpu->thread_scratch != NULL) {
        for (int i = 0; i < device->info.threads; i++)
            free(cpu->thread_scratch[i].memory);
    }
    free(cpu->thread_scratch);
    free(cpu->shared_scratch.memory);
    free(cpu->place_scratch.memory);
    avl_matmul_destroy(cpu->matmul);
    free(cpu);
}

typedef struct clearing {
    char *memory;
    size_t bytes;
} clearing_t;

static const size_t clearing_bytes = 16 << 20;

static void clear_item(void *context, int64_t item, int thread) {
    const clearing_t *clearing = context;
    size_t first = (size_t)item * clearing_bytes, rest = clearing->bytes - first;
    (void)thread;
    memset(clearing->memory + first, 0, rest < clearing_bytes ? rest : clearing_bytes);
}

/* Large blocks begin at a huge page and ask for huge pages: rows named by index touch a page each,
 * and with small pages finding the page costs as much as reading the row. All of it is written to
 * at once, so that it is there when it is needed; by all threads, because the system clears pages
 * at the pace of the thread that asks for them. */
static avl_status_t allocate(avl_device_t *device, size_t bytes, const char *what,
                             void **memory_p) {
    size_t alignment = bytes >= huge_page_bytes ? huge_page_bytes : memory_alignment_bytes;
    if (bytes > PTRDIFF_MAX - alignment)
        return avl_fail(AVL_ERR_MEMORY, "%s: %zu bytes do not fit the address space", what, bytes);
    size_t rounded = (bytes / alignment + (bytes % alignment != 0 || bytes == 0)) * alignment;
    void *memory = aligned_alloc(alignment, rounded);
    if (memory == NULL)
        return avl_fail(AVL_ERR_MEMORY, "%s: no memory for %zu bytes", what, bytes);
    if (alignment == huge_page_bytes)
        (void)madvise(memory, rounded, MADV_HUGEPAGE); /* a wish */
    clearing_t clearing = {memory, rounded};
    avl_cpu_parallel(avl_cpu_device(device),
                     avl_ceil_div((int64_t)rounded, (int64_t)clearing_bytes), (int64_t)rounded,
                     clear_item, &clearing);
    *memory_p = memory;
    return AVL_OK;
}

static void release(avl_device_t *device, void *memory) {
    (void)device;
    free(memory);
}

static avl_status_t copy_bytes(avl_device_t *device, void *target, const void *source,
                               size_t bytes) {
    (void)device;
    if (bytes == 0)
        return AVL_OK;
    if (target == NULL || source == NULL) {
        return avl_fail(AVL_ERR_SHAPE, "cpu device: copying %zu bytes %s NULL", bytes,
                        target == NULL ? "to" : "from");
    }
    memmove(target, source, bytes);
    return AVL_OK;
}

static avl_status_t synchronize(avl_device_t *device) {
    (void)device;
    return AVL_OK;
}

static const avl_device_ops_t cpu_ops = {
    .close = close_device,
    .allocate = allocate,
    .release = release,
    .upload = copy_bytes,
    .download = copy_bytes,
    .synchronize = synchronize,
    .linear = avl_cpu_linear,
    .norm = avl_cpu_norm,
    .rope = avl_cpu_rope,
    .activation = avl_cpu_activation,
    .gated = avl_cpu_gated,
    .add = avl_cpu_add,
    .embed = avl_cpu_embed,
    .patches = avl_cpu_patches,
    .copy_rows = avl_cpu_copy_rows,
    .attention = avl_cpu_attention,
    .decode_attention = avl_cpu_decode_attention,
    .kv_write = avl_cpu_kv_write,
    .kv_move = avl_cpu_kv_move,
    .topk = avl_cpu_topk,
    .argmax = avl_cpu_argmax,
    .choose = avl_cpu_choose,
    .publish = avl_cpu_publish,
    .round = avl_cpu_round,
    .text_weights = avl_cpu_text_weights,
    .text_update = avl_cpu_text_update,
    .text_keep = avl_cpu_text_keep,
    .diversity = avl_cpu_diversity,
    .weigh = avl_cpu_weigh,
    .prepare_linear = avl_cpu_prepare_linear,
    .prepare_attention = avl_cpu_prepare_attention,
};

avl_status_t avl_device_open_cpu(int threads, const char *isa, avl_device_t **device_p) {
    if (threads < 0 || threads > THREADS_MAX) {
        return avl_fail(AVL_ERR_UNSUPPORTED, "cpu device: %d threads; 0 to %d are possible",
                        threads, THREADS_MAX);
    }
    const avl_cpu_kernels_t *kernels = NULL;
    AVL_TRY(choose_table(isa, &kernels));
    avl_cpu_device_t *cpu = NULL;
    AVL_TRY(avl_alloc(1, sizeof *cpu, "the cpu device", &cpu));
    avl_status_t status = AVL_OK;
    cpu->kernels = kernels;
    cpu->device.ops = &cpu_ops;
    cpu->device.is_host = 1;
    avl_device_info_t *info = &cpu->device.info;
    snprintf(info->name, sizeof info->name, "cpu: %s", kernels->label);
    info->threads = threads > 0 ? threads : usable_threads();
    info->memory_bytes = available_memory();
    info->fast_dtype = kernels->fast_dtype;
    AVL_TRY_GOTO(status,
                 avl_alloc((size_t)info->threads, sizeof *cpu->thread_scratch,
                           "the table of thread scratch", &cpu->thread_scratch),
                 err_close);
    AVL_TRY_GOTO(status, avl_matmul_create(info->threads, &cpu->matmul), err_close);
    *device_p = &cpu->device;
    return AVL_OK;

err_close:
    close_device(&cpu->device);
    return status;
}
