"""The models' tokenizer: LLaMA-style BPE with byte fallback in the layout of Hugging Face's tokenizer.json.

Every word that the questions and answers use becomes one piece; letters and digits of random strings stay single
(the first one with the space before it), so that strings are read and not remembered.
"""

import itertools
import json
import os
import random
import string as characters
from collections import Counter

import pictures
import questions

SPACE = "\u2581"
TARGET = 900  # merges stop when the vocabulary is this large
COMMON = """a all also an and any are as at be before behind big both but by can colors contain dark describe detail
different does each every few find first for from get give glass good has have here his how if image in inside into
is it its just kind know large last left light like line look made main make many may me middle more most my name near
new no not number object of on one only or other our out over part people person photo picture place please question
read right same say see shape she show side sign size some something such table tell text than that the their them then
there these they thing this those three time to top two under up use very was way we what when where which while who
why will with word would write written yes you your animal bird blue book bottom building car cat center child city
dog door face floor flower food green hand head house man red river road room sky street tree wall water white window
woman yellow answer brief color count explain list long short sentence summary briefly detailed carefully""".split()
STARTS = "What Where Which How Is Are Read List Describe And In Do Does Can Please The There This Who Why Name".split()


def corpus():
    """How often every word occurs in what the generator says."""
    counts = Counter()
    rng = random.Random("tokenizer")
    for index in range(1500):
        picture = pictures.make(f"tokenizer {index}", ("grid", "mixed", "lines", "table")[index % 4])
        turns = [questions.ask(picture, rng) for _ in range(3)]
        if picture.things:
            turns.append(questions.caption(picture, rng))
        for turn in turns:
            words = turn.text.split(" ")
            words += turn.answer.split(" ") if turn.task != "reading" else []
            counts.update(word.strip(".,:?") for word in words)
    return counts


def words():
    """{word as a tuple of characters: weight}"""
    weights = Counter()
    for word, count in corpus().items():
        weights[SPACE + word] += 1000 + count
    for word in COMMON:
        weights[SPACE + word] += 20
    for word in STARTS + ["first", "second", "picture", "each"]:
        weights[word] += 900
        weights[SPACE + word] += 900
    return {tuple(word): weight for word, weight in weights.items() if word.strip(SPACE).isalpha()}


def joined(word, pair):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def merges(limit):
    """Byte pair encoding, most frequent pair first, ties in the alphabet's order."""
    table = words()
    found = [(SPACE, c) for c in characters.ascii_uppercase + characters.digits]
    for column in "abcd":  # places are one piece each
        found.append((SPACE, column))
        found += [(SPACE + column, row) for row in "1234"]
    for pair in found:
        table = {joined(word, pair): weight for word, weight in table.items()}
    while len(found) < limit:
        pairs = Counter()
        for word, weight in table.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += weight
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        table = {joined(word, best): weight for word, weight in table.items()}
    for turn in ("USER:", "ASSISTANT:"):  # from the right, so that no random string meets a piece of them
        tail = turn[-1]
        for character in turn[-2:0:-1]:
            found.append((character, tail))
            tail = character + tail
        found.append((SPACE + turn[0], tail))
    return found


def special(identity, content):
    return {"id": identity, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}  # fmt: skip


def build():
    """(tokenizer.json, tokenizer_config.json, special_tokens_map.json, facts)"""
    alphabet = [SPACE] + [c for c in map(chr, range(33, 127))]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    table = merges(TARGET - len(vocabulary) - len(alphabet))
    for a, b in table:
        vocabulary.setdefault(a + b, len(vocabulary))
    for character in alphabet:
        vocabulary.setdefault(character, len(vocabulary))
    image, pad = len(vocabulary), len(vocabulary) + 1
    added = [
        special(0, "<unk>"),
        special(1, "<s>"),
        special(2, "</s>"),
        special(image, "<image>"),
        special(pad, "<pad>"),
    ]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 1}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary,
            "merges": [f"{a} {b}" for a, b in table],
        },
    }  # fmt: skip
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    config = {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": decoder, "bos_token": "<s>",
        "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": True, "model_max_length": 2048,
        "pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaProcessor", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False,
    }  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    facts = {"image": image, "pad": pad, "vocabulary": (pad + 64) // 64 * 64}
    return tokenizer, config, names, facts


def save(directory):
    """Writes the three files; returns the ids that the model's config needs."""
    tokenizer, config, names, facts = build()
    os.makedirs(directory, exist_ok=True)
    for file, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config),
                        ("special_tokens_map.json", names)):  # fmt: skip
        with open(os.path.join(directory, file), "w", encoding="utf-8") as out:
            json.dump(value, out, indent=1, ensure_ascii=False)
            out.write("\n")
    return facts
