/* tests/inputs/tokenizer_hostile.c: tokenizer.json and tokenizer_config.json as they must not be.
 * Each is refused with the status and the words that say what and where. */
#include "inputs/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "inputs/tokenizer_parts.h"

#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define WITH(part) "{" part "," MODEL "}"
#define VOCAB(vocab, merges) "{\"model\":{\"vocab\":" vocab ",\"merges\":" merges "}}"
#define OPTION(option) "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]," option "}}"
#define ADDED(fields) WITH("\"added_tokens\":[{" fields "}]")
#define FLAGS                                                                                      \
    "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":"    \
    "true"
#define NORMALIZER(part) WITH("\"normalizer\":" part)
#define PRE_TOKENIZER(part) WITH("\"pre_tokenizer\":" part)
#define DECODER(part) WITH("\"decoder\":" part)
#define POST_PROCESSOR(part) WITH("\"post_processor\":" part)
#define REGEX(expression)                                                                          \
    PRE_TOKENIZER("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,"                \
                  "\"pattern\":{\"Regex\":\"" expression "\"}}")

typedef struct hostile {
    avl_status_t status;
    const char *json, *words, *config;
} hostile_t;

static const hostile_t cases[] = {
    /* JSON */
    {AVL_ERR_DATA, "", "line 1", NULL},
    {AVL_ERR_DATA, "{\"model\":", "line 1", NULL},
    {AVL_ERR_DATA, "[]", "the file is an array", NULL},
    {AVL_ERR_DATA, "{}", "model is missing", NULL},
    {AVL_ERR_DATA, "{\"model\":{},\"model\":{}}", "duplicate", NULL},
    {AVL_ERR_DATA, "{\"model\":\"\xFF\"}", "unable to decode byte 0xff", NULL},
    {AVL_ERR_UNSUPPORTED, WITH("\"version\":\"2.0\""), "version is \"2.0\"", NULL},
    {AVL_ERR_UNSUPPORTED, WITH("\"version\":1"), "version is", NULL},
    /* the model */
    {AVL_ERR_DATA, "{\"model\":3}", "model is an integer", NULL},
    {AVL_ERR_UNSUPPORTED, "{\"model\":{\"type\":\"Unigram\"}}", "\"Unigram\"", NULL},
    {AVL_ERR_DATA, "{\"model\":{\"type\":7}}", "model.type is an integer", NULL},
    {AVL_ERR_DATA, VOCAB("[]", "[]"), "model.vocab is an array", NULL},
    {AVL_ERR_DATA, VOCAB("{}", "[]"), "model.vocab is empty", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":\"0\"}", "[]"), "\"a\" has a string for an id", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":-1}", "[]"), "\"a\" has id -1", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":4294967296}", "[]"), "\"a\" has id 4294967296", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":99999999999999999999}", "[]"), "line 1", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0.5}", "[]"), "\"a\" has a number", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":1,\"b\":1}", "[]"), "id 1 belongs to", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":1,\"a\":2}", "[]"), "duplicate", NULL},
    {AVL_ERR_DATA, "{\"model\":{\"vocab\":{\"a\":0}}}", "model.merges is missing", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "{}"), "model.merges is an object", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[1]"), "model.merges[0] is an integer", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[\"a\"]"), "model.merges[0] is \"a\"", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[\"a a a\"]"), "not two pieces", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[\"a b\"]"), "\"b\" is not in model.vocab", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[\"a a\"]"), "\"aa\" is not in model.vocab", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[[\"a\"]]"), "must be a pair", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0}", "[[\"a\",1]]"), "must be a pair", NULL},
    {AVL_ERR_DATA, VOCAB("{\"a\":0,\"aa\":1}", "[[\"a\",\"a\"],\"a a\"]"), "merges[1]", NULL},
    {AVL_ERR_UNSUPPORTED, OPTION("\"dropout\":0.1"), "dropout is 0.1", NULL},
    {AVL_ERR_DATA, OPTION("\"dropout\":\"x\""), "model.dropout is a string", NULL},
    {AVL_ERR_UNSUPPORTED, OPTION("\"end_of_word_suffix\":\"</w>\""), "end_of_word_suffix", NULL},
    {AVL_ERR_UNSUPPORTED, OPTION("\"continuing_subword_prefix\":\"##\""), "continuing", NULL},
    {AVL_ERR_DATA, OPTION("\"end_of_word_suffix\":3"), "end_of_word_suffix is an integer", NULL},
    {AVL_ERR_DATA, OPTION("\"byte_fallback\":1"), "model.byte_fallback is an integer", NULL},
    {AVL_ERR_DATA, OPTION("\"unk_token\":\"<unk>\""), "\"<unk>\" is not in model.vocab", NULL},
    {AVL_ERR_DATA, OPTION("\"unk_token\":0"), "model.unk_token is an integer", NULL},
    /* added tokens */
    {AVL_ERR_DATA, WITH("\"added_tokens\":{}"), "added_tokens is an object", NULL},
    {AVL_ERR_DATA, WITH("\"added_tokens\":[3]"), "added_tokens[0].id", NULL},
    {AVL_ERR_DATA, ADDED("\"content\":\"x\"," FLAGS), "added_tokens[0].id", NULL},
    {AVL_ERR_DATA, ADDED("\"id\":99999999,\"content\":\"x\"," FLAGS), "added_tokens[0].id", NULL},
    {AVL_ERR_DATA, ADDED("\"id\":3," FLAGS), "added_tokens[0].content is missing", NULL},
    {AVL_ERR_DATA, ADDED("\"id\":3,\"content\":\"x\""), "added_tokens[0].single_word is missing",
     NULL},
    {AVL_ERR_UNSUPPORTED, ADDED("\"id\":3,\"content\":\"x\\u0000y\"," FLAGS), "has a NUL", NULL},
    /* normalizers */
    {AVL_ERR_DATA, NORMALIZER("[]"), "normalizer is an array", NULL},
    {AVL_ERR_DATA, NORMALIZER("{}"), "normalizer.type is missing", NULL},
    {AVL_ERR_UNSUPPORTED, NORMALIZER("{\"type\":\"Precompiled\"}"), "\"Precompiled\"", NULL},
    {AVL_ERR_DATA, NORMALIZER("{\"type\":\"Sequence\"}"), "normalizer.normalizers is missing",
     NULL},
    {AVL_ERR_UNSUPPORTED,
     NORMALIZER("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Odd\"}]}"),
     "normalizer.normalizers[0]: the type \"Odd\"", NULL},
    {AVL_ERR_DATA, NORMALIZER("{\"type\":\"Prepend\"}"), "normalizer.prepend is missing", NULL},
    {AVL_ERR_DATA, NORMALIZER("{\"type\":\"Replace\",\"content\":\"\"}"), "normalizer.pattern",
     NULL},
    {AVL_ERR_DATA, NORMALIZER("{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"String\":1}}"),
     "normalizer.pattern", NULL},
    {AVL_ERR_UNSUPPORTED,
     NORMALIZER("{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"String\":\"\"}}"),
     "an empty pattern", NULL},
    {AVL_ERR_DATA, NORMALIZER("{\"type\":\"Strip\",\"strip_left\":1}"), "strip_left", NULL},
    /* pre-tokenizers */
    {AVL_ERR_UNSUPPORTED, PRE_TOKENIZER("{\"type\":\"BertPreTokenizer\"}"), "BertPreTokenizer",
     NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Split\",\"invert\":false}"), "behavior is missing",
     NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Split\",\"behavior\":\"x\",\"invert\":false}"),
     "\"x\" is none", NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"ByteLevel\"}"), "add_prefix_space is missing", NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Metaspace\"}"), "replacement is missing", NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"),
     "must be one character", NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Metaspace\",\"replacement\":\"\"}"),
     "must be one character", NULL},
    {AVL_ERR_DATA,
     PRE_TOKENIZER("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"x\"}"),
     "prepend_scheme is \"x\"", NULL},
    {AVL_ERR_DATA,
     PRE_TOKENIZER("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}"),
     "add_prefix_space is false", NULL},
    {AVL_ERR_DATA, PRE_TOKENIZER("{\"type\":\"Digits\"}"), "individual_digits is missing", NULL},
    {AVL_ERR_DATA, REGEX("("), "regular expression", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("\\\\h"), "the escape \\h", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("\\\\b"), "the escape \\b", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("[a[b]]"), "a class inside a class", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("[a&&b]"), "an intersection", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("a{1,3}+"), "a possessive interval", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("(?i)a"), "a group of an unknown kind", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("(*MARK:a)b"), "a verb", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("a\\\\"), "a backslash at the end", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("\\\\u12"), "\\u without four digits", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("\\\\xFF"), "a byte that is no character", NULL},
    {AVL_ERR_DATA, REGEX("\\\\p{Nonsense}"), "regular expression", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("\\\\p{L"), "a property without braces", NULL},
    {AVL_ERR_UNSUPPORTED, REGEX("a\\u0000"), "a NUL", NULL},
    /* decoders */
    {AVL_ERR_UNSUPPORTED, DECODER("{\"type\":\"WordPiece\"}"), "\"WordPiece\"", NULL},
    {AVL_ERR_DATA, DECODER("{\"type\":\"Strip\",\"content\":\" \"}"), "start and stop", NULL},
    {AVL_ERR_DATA, DECODER("{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"),
     "start and stop", NULL},
    {AVL_ERR_DATA, DECODER("{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}"),
     "must be one character", NULL},
    {AVL_ERR_UNSUPPORTED,
     DECODER(
         "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}"),
     "decoder.decoders[1]: ByteFallback after Fuse", NULL},
    {AVL_ERR_UNSUPPORTED,
     DECODER("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Metaspace\","
             "\"replacement\":\"_\"}]}"),
     "Metaspace after Fuse", NULL},
    /* post-processors */
    {AVL_ERR_UNSUPPORTED, POST_PROCESSOR("{\"type\":\"RobertaProcessing\"}"), "Roberta", NULL},
    {AVL_ERR_DATA, POST_PROCESSOR("{\"type\":\"TemplateProcessing\"}"), "single is missing", NULL},
    {AVL_ERR_DATA, POST_PROCESSOR("{\"type\":\"TemplateProcessing\",\"single\":[]}"),
     "lacks the sequence A", NULL},
    {AVL_ERR_DATA, POST_PROCESSOR("{\"type\":\"TemplateProcessing\",\"single\":[4]}"), "single[0]",
     NULL},
    {AVL_ERR_DATA,
     POST_PROCESSOR("{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
                    "{\"Sequence\":{\"id\":\"A\"}}]}"),
     "single[1]", NULL},
    {AVL_ERR_DATA,
     POST_PROCESSOR(
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
         "{\"Sequence\":{\"id\":\"A\"}}]}"),
     "\"<s>\" is not in special_tokens", NULL},
    {AVL_ERR_DATA,
     POST_PROCESSOR(
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],"
         "\"special_tokens\":{\"x\":{\"ids\":[-3]}}}"),
     "has an id that is none", NULL},
    /* tokenizer_config.json */
    {AVL_ERR_DATA, "{" MODEL "}", "tokenizer_config.json: the file must be an object", "[]"},
    {AVL_ERR_DATA, "{" MODEL "}", "tokenizer_config.json: line 1", "{"},
    {AVL_ERR_DATA, "{" MODEL "}", "clean_up_tokenization_spaces",
     "{\"clean_up_tokenization_spaces\":1}"},
    {AVL_ERR_UNSUPPORTED, "{" MODEL "}", "split_special_tokens", "{\"split_special_tokens\":true}"},
    {AVL_ERR_DATA, "{" MODEL "}", "added_tokens_decoder must be an object",
     "{\"added_tokens_decoder\":[]}"},
    {AVL_ERR_DATA, "{" MODEL "}", "\"x\" is no id", "{\"added_tokens_decoder\":{\"x\":{}}}"},
    {AVL_ERR_DATA, "{" MODEL "}", "added_tokens_decoder must be a string",
     "{\"added_tokens_decoder\":{\"3\":{}}}"},
    {AVL_ERR_DATA, "{" MODEL "}", "bos_token must be a string", "{\"bos_token\":3}"},
    {AVL_ERR_DATA, "{" MODEL "}", "bos_token \"<s>\" is no token",
     "{\"tokenizer_class\":\"LlamaTokenizer\"}"},
};

static void test_refused(void **context) {
    (void)context;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const hostile_t *hostile = &cases[i];
        avl_tokenizer_t *tokenizer = NULL;
        avl_status_t status =
            avl_tokenizer_parse(hostile->json, strlen(hostile->json), hostile->config,
                                hostile->config == NULL ? 0 : strlen(hostile->config), &tokenizer);
        if (status != hostile->status || strstr(avl_status_detail(), hostile->words) == NULL)
            fail_msg("case %zu: %s %s: status %d \"%s\", expected %d with \"%s\"", i, hostile->json,
                     hostile->config == NULL ? "" : hostile->config, (int)status,
                     avl_status_detail(), (int)hostile->status, hostile->words);
        assert_null(tokenizer);
    }
}

/* The part that all cases share is itself accepted, with the configuration that `transformers`
 * writes for a tokenizer without a longest text. */
static void test_accepted(void **context) {
    (void)context;
    static const char config[] = "{\"model_max_length\":1000000000000000019884624838656,"
                                 "\"clean_up_tokenization_spaces\":false}";
    static const char *const good[] = {"{" MODEL "}",
                                       WITH("\"version\":\"1.0\""),
                                       OPTION("\"dropout\":0.0"),
                                       ADDED("\"id\":3,\"content\":\"x\"," FLAGS),
                                       REGEX("(?i:a)|[^\\\\s\\\\p{L}]+\\\\u0041(?!\\\\S)"),
                                       VOCAB("{\"a\":0,\"aa\":9}", "[\"#version: 0.2\",\"a a\"]")};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        avl_tokenizer_t *tokenizer = NULL;
        if (avl_tokenizer_parse(good[i], strlen(good[i]), config, sizeof config - 1, &tokenizer) !=
            AVL_OK)
            fail_msg("%s: %s", good[i], avl_status_detail());
        avl_tokenizer_close(tokenizer);
    }
}

/* Deep nesting and too many parts end in words, not in a stack overflow. */
static void test_nesting(void **context) {
    (void)context;
    static const char opening[] = "{\"type\":\"Sequence\",\"normalizers\":[";
    for (int depth = 20; depth <= 100000; depth *= 5) {
        avl_text_t json = {0};
        assert_int_equal(avl_text_add(&json, "{\"normalizer\":", 14), AVL_OK);
        for (int i = 0; i < depth; i++)
            assert_int_equal(avl_text_add(&json, opening, sizeof opening - 1), AVL_OK);
        for (int i = 0; i < depth; i++)
            assert_int_equal(avl_text_add(&json, "]}", 2), AVL_OK);
        assert_int_equal(avl_text_add(&json, "}", 1), AVL_OK);
        avl_tokenizer_t *tokenizer = NULL;
        avl_status_t status = avl_tokenizer_parse(json.bytes, json.count, NULL, 0, &tokenizer);
        assert_true(status == AVL_ERR_UNSUPPORTED || status == AVL_ERR_DATA);
        assert_non_null(strstr(avl_status_detail(), "nested too deep") != NULL
                            ? avl_status_detail()
                            : strstr(avl_status_detail(), "depth"));
        avl_text_free(&json);
    }
}

/* A normalizer that would make a text explode is stopped. */
static void test_explosion(void **context) {
    (void)context;
    avl_text_t json = {0};
    static const char replace[] =
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
        "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}";
    static const char head[] = "{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[";
    assert_int_equal(avl_text_add(&json, head, sizeof head - 1), AVL_OK);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(avl_text_add(&json, ",", i > 0), AVL_OK);
        assert_int_equal(avl_text_add(&json, replace, sizeof replace - 1), AVL_OK);
    }
    assert_int_equal(avl_text_add(&json, "]}}", 3), AVL_OK);
    avl_tokenizer_t *tokenizer = NULL;
    if (avl_tokenizer_parse(json.bytes, json.count, NULL, 0, &tokenizer) != AVL_OK)
        fail_msg("%s", avl_status_detail());
    int32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(avl_tokenizer_encode(tokenizer, "aaaa", 4, true, &ids, &count),
                     AVL_ERR_TOO_LARGE);
    assert_null(ids);
    avl_tokenizer_close(tokenizer);
    avl_text_free(&json);
}

/* A post-processor of a hundred thousand tokens is refused, and not after minutes. */
static void test_long_template(void **context) {
    (void)context;
    static const char head[] =
        "{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
        "{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}],"
        "\"special_tokens\":{\"x\":{\"ids\":[0";
    avl_text_t json = {0};
    assert_int_equal(avl_text_add(&json, head, sizeof head - 1), AVL_OK);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(avl_text_add(&json, ",0", 2), AVL_OK);
    assert_int_equal(avl_text_add(&json, "]}}}}", 5), AVL_OK);
    avl_tokenizer_t *tokenizer = NULL;
    assert_int_equal(avl_tokenizer_parse(json.bytes, json.count, NULL, 0, &tokenizer),
                     AVL_ERR_UNSUPPORTED);
    assert_non_null(strstr(avl_status_detail(), "post_processor adds more than"));
    avl_text_free(&json);
}

/* An expression that backtracks without end fails the text, within its bound. */
static void test_backtracking(void **context) {
    (void)context;
    static const char json[] = REGEX("(?:a+)+$|(?:x|xx)+y");
    avl_tokenizer_t *tokenizer = NULL;
    if (avl_tokenizer_parse(json, sizeof json - 1, NULL, 0, &tokenizer) != AVL_OK)
        fail_msg("%s", avl_status_detail());
    char text[64];
    memset(text, 'x', sizeof text);
    int32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(avl_tokenizer_encode(tokenizer, text, sizeof text, true, &ids, &count),
                     AVL_ERR_TOO_LARGE);
    assert_non_null(strstr(avl_status_detail(), "match"));
    avl_tokenizer_close(tokenizer);
}

static void test_files(void **context) {
    (void)context;
    char directory[] = "/tmp/avl-tokenizer-XXXXXX", path[64];
    avl_tokenizer_t *tokenizer = NULL;
    assert_non_null(mkdtemp(directory));
    assert_int_equal(avl_tokenizer_open(directory, &tokenizer), AVL_ERR_NOT_FOUND);
    assert_non_null(strstr(avl_status_detail(), "tokenizer.json"));
    assert_int_equal(avl_tokenizer_open("/no/such/directory", &tokenizer), AVL_ERR_NOT_FOUND);
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(avl_tokenizer_open(directory, &tokenizer), AVL_ERR_IO);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes to it */
    assert_int_equal(avl_tokenizer_open(directory, &tokenizer), AVL_ERR_IO);
    assert_non_null(strstr(avl_status_detail(), "regular"));
    assert_int_equal(unlink(path), 0);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs("{" MODEL "}", file);
    fclose(file);
    assert_int_equal(avl_tokenizer_open(directory, &tokenizer), AVL_OK);
    avl_tokenizer_close(tokenizer);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_nesting),       cmocka_unit_test(test_explosion),
        cmocka_unit_test(test_long_template), cmocka_unit_test(test_backtracking),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
