#!/usr/bin/env python3
"""Makes tests/inputs/data/tokenizer: small tokenizers of every kind, and what Hugging Face's `tokenizers` and
`transformers` give for a shared list of texts.

    python3 tools/reference/tokenizer.py

Needs tokenizers 0.20 and transformers 4.46. Everything is made from texts written or drawn here, with fixed
seeds, so that running it again gives the same files.

Files (integers little-endian):
    texts.bin           u32 count, then per text: u32 bytes, the bytes (perhaps no UTF-8)
    <kind>/             tokenizer.json, and tokenizer_config.json where the kind has one
    <kind>/ids.bin      u32 number of texts, then per text: u32 count, u16 ids (with special tokens),
                        u32 bytes and u64 FNV-1a of the decoded text without special tokens;
                        then u32 number of drawn id sequences, and u32, u64 of the text of each
"""

import json
import random
import struct
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "inputs" / "data" / "tokenizer"

PHRASES = """The quick brown fox jumps over the lazy dog.
What is written on the sign, and where does the red bus stop?
Describe the image in detail: two cats, a blue bowl and 3 green apples.
I'm sure they've said it'll rain; we'd better go, don't you think? It's John's.
HE'S GOT IT, THEY'RE HERE, I'VE SEEN 'EM AND WE'LL SEE.
Füße, Straße und Öl: größer als üblich? Ja, natürlich!
L'été dernier, nous étions à la plage près de Nîmes où il faisait très chaud.
¿Dónde está el niño? ¡Mañana será otro día!
O coração não esquece a canção de São João.
Perché la città è così bella di notte?
Zażółć gęślą jaźń, pchnąć w tę łódź jeża.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép.
Kırmızı ışık İstanbul'da yanıyor; DİYARBAKIR.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ήταν μια φορά κι έναν καιρό ένα μικρό κορίτσι.
שלום עולם, מה שלומך היום?
مرحبا بالعالم، كيف حالك اليوم؟ ٣٤٥
سلام دنیا، می‌خواهم بروم.
नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय १२३
বাংলা ভাষা খুব সুন্দর।
தமிழ் மொழி மிகவும் பழமையானது.
తెలుగు భాష చాలా మధురమైనది.
สวัสดีชาวโลก วันนี้อากาศดีมาก
Xin chào thế giới, hôm nay trời đẹp quá.
你好，世界！今天天气很好，我们去公园散步吧。
東京は日本の首都です。カタカナとひらがなと漢字。
안녕하세요 세계, 오늘 날씨가 좋네요.
გამარჯობა მსოფლიო
Բարեւ աշխարհ
ሰላም ልዑል
Привіт, світе! Це їжак.
int main(void) { printf("%d\\n", x += 1); return 0; } /* done */
def f(x):\n    return {k: v for k, v in x.items() if v >= 0.5}
SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name;
https://example.org/a/b?q=1&r=%20x#frag user.name+tag@example.com
$1,234.56 €99 £0.01 ¥1000 50% 1e-9 0xFF 2024-02-29T12:34:56Z 3.14159
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∑ᵢ xᵢ² ≤ ∞
“Smart quotes” ‘single’ — dash – en-dash … ellipsis don’t it’s
""".split("\n")[:-1]

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "❤️", "🧑🏿‍🚀", "☕", "♟️", "🤷🏻‍♀️"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085",
          "\u180e", "\u200b", "\u200d", "\ufeff", "\u1680", "\u2009", "\x0b", "\x0c", " \n ", "\x1c"]
SPECIALS = ["<s>", "</s>", "<unk>", "<image>", "<pad>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
            "<|eot_id|>", "<|endoftext|>", "<lstrip>", "<rstrip>", "<both>", "word", "Norm", "[norm]",
            "<0x41>", "<0x0A>", "▁", "▁▁", "Ġ", "Ċ", "<ima", "<image", "image>", "<s", "<|im_", "naïve"]
ODD = ["\u0301", "\u0327", "\u0345", "e\u0301", "e\u0327\u0301", "e\u0301\u0327", "\u1e9b\u0323", "\ufb01",
       "\u212b", "\u2126", "\u212a", "\u017f", "'\u017f", "\u0130", "\u0131", "\uac00", "\u1100\u1161\u11a8",
       "\uff21\uff42", "\u2460", "\u00bd", "\u0e33", "\u0958", "\u0344", "\ufdfa", "\u2167", "\u00df",
       "\u1e9e", "\u03a3", "\u03c2", "\U0001d400", "\U0002f804", "\ufffd", "\ufffe", "\U0010ffff", "\u00ad",
       "\u24b6", "\u0661", "\u0967", "\u00b2", "\u2083", "_", "__", "\u203f", "x\u0323\u0307y"]
CONTROLS = [chr(c) for c in range(32)] + ["\x7f", "\x80", "\x9f"]
BROKEN = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80",
          b"\x80\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x28\xa1", b"\xc3("]


def texts():
    """The shared list: at least 2,500 byte strings."""
    rng = random.Random(20240229)
    words = [w for p in PHRASES for w in p.split(" ")]
    assigned = [c for c in range(0x20, 0x30000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
    out = [b"", b" ", b"  ", b"\n", b"\0", b"a\0b", b"\0\0\0"]
    out += [p.encode() for p in PHRASES] + [p.upper().encode() for p in PHRASES]
    out += [p.encode()[: rng.randrange(3, 40)] for p in PHRASES for _ in range(2)]  # cut anywhere
    out += [e.encode() for e in EMOJI + ODD + CONTROLS + SPECIALS] + BROKEN
    for n in (3, 7, 8, 15, 16, 31, 33, 64, 100):
        for c in (" ", "\n", "\t", "\r\n", "a", "=", "-", "ab", "7", "\u0301", "▁", "😀", "é", " \n", "<s>"):
            text = c * n
            out += [text.encode(), ("x" + text + "y").encode()] if n < 34 else [text.encode()]
    for n in range(1, 13):
        digits = "".join(rng.choice("0123456789") for _ in range(n))
        out += [digits.encode(), f" {digits}.{digits} a{digits}b".encode()]
    for left in ("", " ", "x", "x ", "  \n", "é"):
        for right in ("", " ", "y", " y", "\t ", "_"):
            for s in ("<image>", "<lstrip>", "<rstrip>", "<both>", "word", "Norm", "[norm]"):
                out.append((left + s + right).encode())
    for _ in range(230):
        out.append("".join(rng.choice(SPECIALS + words + SPACES) for _ in range(rng.randrange(2, 8))).encode())
    for _ in range(250):
        out.append(" ".join(rng.choice(words) for _ in range(rng.randrange(1, 9))).encode())
    for _ in range(300):
        bag = words + EMOJI + SPACES + ODD
        out.append("".join(rng.choice(bag) for _ in range(rng.randrange(1, 8))).encode())
    for _ in range(250):
        out.append("".join(rng.choice(ODD + SPACES + ["a", "b"]) for _ in range(rng.randrange(1, 9))).encode())
    for _ in range(250):
        out.append("".join(chr(rng.choice(assigned)) for _ in range(rng.randrange(1, 9))).encode())
    for _ in range(150):
        parts = [rng.choice(BROKEN + [w.encode() for w in words]) for _ in range(rng.randrange(1, 7))]
        out.append(b"".join(parts))
    for _ in range(120):
        out.append(bytes(rng.randrange(256) for _ in range(rng.randrange(1, 14))))
    for _ in range(120):
        out.append("".join(rng.choice(CONTROLS + ["a", " ", "é"]) for _ in range(rng.randrange(1, 10))).encode())
    marks = [chr(c) for c in assigned if unicodedata.combining(chr(c))]
    for _ in range(60):
        out.append(("a" + "".join(rng.choice(marks) for _ in range(rng.randrange(2, 30)))).encode())
    assert len(out) >= 2500, len(out)
    return out


def corpus():
    rng = random.Random(1)
    words = [w for p in PHRASES for w in p.split(" ")]
    return PHRASES * 3 + [" ".join(rng.choice(words) for _ in range(12)) for _ in range(400)]


def train(pre_tokenizer, normalizer, size, alphabet, decoder=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, limit_alphabet=300, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return model["vocab"], merges


def sentencepiece_model(size, byte_fallback=True, fuse_unk=True):
    """<unk>, <s>, </s>, the bytes, then pieces, as in LLaMA's vocabulary."""
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    vocab, merges = train(metaspace, None, size, [])
    names = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    names += [t for t, _ in sorted(vocab.items(), key=lambda x: x[1])]
    return models.BPE({t: i for i, t in enumerate(names)}, merges, unk_token="<unk>", fuse_unk=fuse_unk,
                      byte_fallback=byte_fallback)


ADDED = [AddedToken("<lstrip>", lstrip=True, normalized=False, special=True),
         AddedToken("<rstrip>", rstrip=True, normalized=False, special=True),
         AddedToken("<both>", lstrip=True, rstrip=True, normalized=True, special=True),
         AddedToken("word", single_word=True, normalized=False),
         AddedToken("Norm", single_word=True, normalized=True),
         AddedToken("[norm]", normalized=True),
         AddedToken("naïve", normalized=False)]


def special(*names):
    return [AddedToken(n, normalized=False, special=True) for n in names]


def template(tokenizer, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                         special_tokens=[(bos, tokenizer.token_to_id(bos))])


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def llama_prepend():
    t = Tokenizer(sentencepiece_model(900))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = llama_decoder()
    t.add_special_tokens(special("<unk>", "<s>", "</s>"))
    t.add_tokens(special("<image>", "<pad>") + ADDED)
    t.post_processor = template(t, "<s>")
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "legacy": False,
              "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
              "additional_special_tokens": ["<|im_end|>"], "clean_up_tokenization_spaces": False}
    return t, config


def llama_first():
    t = Tokenizer(sentencepiece_model(800))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    t.decoder = llama_decoder()
    t.add_special_tokens(special("<unk>", "<s>", "</s>"))
    t.add_tokens(special("<image>") + ADDED)
    t.post_processor = template(t, "<s>")
    return t, None


def metaspace_always():
    """No byte fallback: unknown characters become <unk>, one each; Metaspace on both sides."""
    t = Tokenizer(sentencepiece_model(700, byte_fallback=False, fuse_unk=False))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    t.add_special_tokens(special("<s>", "</s>"))
    t.add_tokens(special("<image>") + ADDED)
    return t, None


def fused_unknown():
    """Unknown characters join; nothing is prepended; the decoder is missing."""
    t = Tokenizer(sentencepiece_model(600, byte_fallback=False, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " "),
                                         normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(",", "removed"),
        pre_tokenizers.Split(".", "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"[;:!?]+"), "merged_with_next"),
        pre_tokenizers.Split(Regex(r"\w+"), "contiguous", invert=True),
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)])
    t.add_tokens(ADDED)
    return t, None


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level_model(expression, size, normalizer=None, **options):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    vocab, merges = train(pre, normalizer, size, pre_tokenizers.ByteLevel.alphabet())
    return pre, models.BPE(vocab, merges, **options)


def llama3():
    pre, model = byte_level_model(LLAMA3, 1100, ignore_merges=True)
    t = Tokenizer(model)
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.add_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<image>") + ADDED)
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template(t, "<|begin_of_text|>")])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
              "eos_token": "<|eot_id|>", "clean_up_tokenization_spaces": True}
    return t, config


def qwen2():
    pre, model = byte_level_model(QWEN2, 1000, normalizers.NFC())
    t = Tokenizer(model)
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>") + ADDED)
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t, None


def gpt2():
    pre = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    vocab, merges = train(pre, None, 900, pre_tokenizers.ByteLevel.alphabet())
    t = Tokenizer(models.BPE(vocab, merges))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.add_tokens(special("<|endoftext|>") + ADDED)
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    return t, None


KINDS = {"llama-prepend": llama_prepend, "llama-first": llama_first, "metaspace-always": metaspace_always,
         "fused-unknown": fused_unknown, "llama3": llama3, "qwen2": qwen2, "gpt2": gpt2}
PAIRS = {"llama3", "llama-first"}  # merges written as pairs; the others have the older "a b"
DRAWN = 600


def draw(limit):
    """The id sequences that tests/inputs/tokenizer.c draws too (splitmix64)."""
    state = 1
    mask = (1 << 64) - 1

    def following():
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    for _ in range(DRAWN):
        count = following() % 12 + 1
        low = following() % 2 == 0  # half of them from the first 300 ids: bytes and special tokens
        yield [following() % (min(300, limit) if low else limit + 3) for _ in range(count)]


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return value


def write_ids(path, tokenizer, config, all_texts, limit):
    def encode(text):
        return tokenizer.encode(text) if config else tokenizer.encode(text, add_special_tokens=True).ids

    out = struct.pack("<I", len(all_texts))
    for text in all_texts:
        ids = encode(text.decode("utf-8", errors="replace"))
        decoded = tokenizer.decode(ids, skip_special_tokens=True).encode()
        out += struct.pack(f"<I{len(ids)}HIQ", len(ids), *ids, len(decoded), fnv(decoded))
    out += struct.pack("<I", DRAWN)
    for ids in draw(limit):
        decoded = tokenizer.decode(ids, skip_special_tokens=True).encode()
        out += struct.pack("<IQ", len(decoded), fnv(decoded))
    path.write_bytes(out)


def write_json(path, data):
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    all_texts = texts()
    OUT.mkdir(parents=True, exist_ok=True)
    packed = struct.pack("<I", len(all_texts))
    packed += b"".join(struct.pack("<I", len(t)) + t for t in all_texts)
    (OUT / "texts.bin").write_bytes(packed)
    for name, make in KINDS.items():
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        tokenizer, config = make()
        data = json.loads(tokenizer.to_str())
        if name not in PAIRS:
            data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
        write_json(folder / "tokenizer.json", data)
        if config:
            write_json(folder / "tokenizer_config.json", config)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            limit = max(tokenizer.get_vocab().values()) + 1
        else:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            limit = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        write_ids(folder / "ids.bin", tokenizer, config, all_texts, limit)
        print(name, limit, sum(f.stat().st_size for f in folder.iterdir()))
    (OUT / "avl-tiny").mkdir(exist_ok=True)
    tiny = AutoTokenizer.from_pretrained(ROOT / "models" / "avl-tiny")
    write_ids(OUT / "avl-tiny" / "ids.bin", tiny, True, all_texts, max(tiny.get_vocab().values()) + 1)


if __name__ == "__main__":
    main()
