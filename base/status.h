/* base/status.h: the one result type of the project, and the text that explains a failure.
 *
 * Codes are grouped by what must be rebuilt after them: nothing but the request, the rank, or the
 * whole group. The function that detects a failure calls avl_fail() with the precise cause; callers
 * pass the code up unchanged (AVL_TRY) and may put what they were doing before the text
 * (avl_fail_in). The text lives in the calling thread until its next failure, as with dlerror(). */
#ifndef AVL_BASE_STATUS_H
#define AVL_BASE_STATUS_H

typedef enum avl_status {
    AVL_OK = 0,
    /* The request is at fault or unlucky; everything else is as before. */
    AVL_ERR_INVALID = 1,     /* the caller's data or parameters are wrong */
    AVL_ERR_NOT_FOUND = 2,   /* a named thing does not exist */
    AVL_ERR_UNSUPPORTED = 3, /* well formed, but not something this build can do */
    AVL_ERR_TOO_LARGE = 4,   /* beyond a stated limit: bytes, pixels, tokens, images */
    AVL_ERR_EXHAUSTED = 5,   /* no room now (queue, pages); trying again later may work */
    AVL_ERR_DEADLINE = 6,    /* the request's deadline passed */
    AVL_ERR_CANCELLED = 7,   /* whoever asked no longer wants it */
    AVL_ERR_UNAVAILABLE = 8, /* the service is starting, draining, or has lost its workers */
    /* This rank cannot go on. */
    AVL_ERR_IO = 32,     /* a file or socket failed; the text holds strerror */
    AVL_ERR_DATA = 33,   /* a file's content is not what its format promises */
    AVL_ERR_MEMORY = 34, /* an allocation failed */
    AVL_ERR_SHAPE = 35,  /* a kernel was called outside its contract: a bug of the caller */
    AVL_ERR_DEVICE = 36, /* the accelerator or a compute library failed */
    /* The group of ranks cannot go on. */
    AVL_ERR_COMM = 64,    /* a collective failed */
    AVL_ERR_TIMEOUT = 65, /* a peer did not answer within its bound */
    AVL_ERR_PEER = 66,    /* another rank voted that it failed */
    AVL_ERR_INTERNAL = 96 /* should not happen */
} avl_status_t;

#define AVL_MUST_CHECK __attribute__((warn_unused_result))
#define AVL_PRINTF(format_index, first_index)                                                      \
    __attribute__((format(printf, format_index, first_index)))

#define AVL_STATUS_DETAIL_BYTES 512

/* Records the cause for this thread and returns `status`. A longer text is cut; a byte that is not
 * UTF-8 becomes a question mark. */
avl_status_t avl_fail(avl_status_t status, const char *format, ...) AVL_PRINTF(2, 3);
/* Puts "context: " before the recorded cause and returns `status`. */
avl_status_t avl_fail_in(avl_status_t status, const char *format, ...) AVL_PRINTF(2, 3);
/* The text of this thread's last failure; never NULL. Overwritten by the thread's next avl_fail. */
const char *avl_status_detail(void);
/* "INVALID", "TOO_LARGE", ...; "UNKNOWN" for a number that is no status. */
const char *avl_status_name(avl_status_t status);

/* Returns from the calling function when `expression` fails. */
#define AVL_TRY(expression)                                                                        \
    do {                                                                                           \
        avl_status_t avl_try_status = (expression);                                                \
        if (avl_try_status != AVL_OK)                                                              \
            return avl_try_status;                                                                 \
    } while (0)

/* Goes to `label` when `expression` fails, with the code in `status_variable`. */
#define AVL_TRY_GOTO(status_variable, expression, label)                                           \
    do {                                                                                           \
        (status_variable) = (expression);                                                          \
        if ((status_variable) != AVL_OK)                                                           \
            goto label;                                                                            \
    } while (0)

/* For programmer errors only; stays in release builds; the condition has no side effects. */
#define AVL_ASSERT(condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            avl_assert_failed(#condition, __FILE__, __LINE__);                                     \
    } while (0)
void avl_assert_failed(const char *condition, const char *file, int line)
    __attribute__((noreturn, cold));

#endif
