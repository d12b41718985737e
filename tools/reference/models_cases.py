"""The cases of every model: prompts and picture sizes. Pictures are drawn by models_images.py."""

ONE = "USER: <image>\nDescribe the image. ASSISTANT:"
TEXT = "USER: Which of the objects is at the bottom right of the middle? ASSISTANT:"

# per model: [(prompt, [(width, height), ...])]
CASES = {
    "llava-mha": [
        (ONE, [(60, 44)]),
        (
            "USER: <image>\n<image> What is in the first image and the second image?<image> "
            "ASSISTANT:",
            [(42, 42), (31, 77), (90, 33)],
        ),
        ("A chat.</s>USER: <image>\nRead the text. ASSISTANT: It is", [(97, 1)]),
        (TEXT, []),
    ],
    "llava-gqa": [
        (ONE, [(50, 71)]),
        (
            "USER: First <image>\nthen <image>\n which one is green? ASSISTANT:",
            [(120, 43), (41, 43)],
        ),
        (TEXT, []),
    ],
    "llava-mistral": [
        ("[INST] <image>\nDescribe the image, one object after the other. [/INST]", [(44, 61)]),
        ("[INST] <image> or <image>? Read the bottom text. [/INST]", [(28, 28), (64, 29)]),
        (
            "[INST] Read the middle text and the top text and describe what you see there, object "
            "by object. [/INST]",
            [],
        ),
        # the only one whose picture the last prompt row sees through the window (partly)
        ("[INST] Describe the image: <image> [/INST]", [(57, 40)]),
    ],
    "next-mha": [
        (ONE, [(80, 45)]),
        ("USER: <image>\n and <image>\nDescribe the image. ASSISTANT:", [(33, 90), (57, 55)]),
        ("USER: <image>\nWhat shape is it? ASSISTANT:", [(150, 3)]),
        ("USER: <image>\nWhat shape is it? ASSISTANT:", [(1, 64)]),
        (TEXT, []),
    ],
    "next-gqa": [
        ("[INST] <image>\nDescribe the image. [/INST]", [(75, 52)]),
        ("[INST] <image>\n<image>\nWhich is larger? [/INST]", [(29, 83), (110, 39)]),
        ("[INST] <image>\nWhat shape is it? [/INST]", [(3, 119)]),
        (TEXT, []),
    ],
    "llava-rope-linear": [
        (ONE, [(60, 44)]),
        ("USER: <image> and <image> are which? ASSISTANT:", [(36, 60), (29, 28)]),
    ],
    "llava-rope-dynamic": [
        # longer than max_position_embeddings (32) from the start
        (
            "USER: <image>\nDescribe the image, top to bottom, object by object, and read the "
            "text. ASSISTANT:",
            [(60, 44)],
        ),
        # grows past it while decoding
        ("USER: <image>\nRead. ASSISTANT:", [(30, 44)]),
    ],
    "llava-rope-llama3": [
        (ONE, [(60, 44)]),
        ("USER: <image> and <image> are which? ASSISTANT:", [(36, 60), (29, 28)]),
    ],
    "llava-bias": [
        (ONE, [(60, 44)]),
        ("USER: <image> and <image> are which? ASSISTANT:", [(36, 60), (29, 28)]),
        (TEXT, []),
    ],
}

# A-VL runs of every case with pictures: (store, compute, interval)
AVL_SETTINGS = [(0.5, 0.3, 3), (0.3, 0.15, 3), (0.1, 0.05, 3)]
# ... and of each model's first case, besides
AVL_MORE_SETTINGS = [(0.5, 0.3, 1), (0.7, 0.2, 4), (1, 0.25, 2), (1, 1, 3)]

# Runs with adaptive text attention (ours protects nothing here) and the prefill filter, of each
# model's first two cases with pictures. Those whose gaps are too small to demand equality are left
# out.
AVL_TEXT = [
    {"text_keep": 0.6, "text_keep_min": 20},
    {"text_keep": 0.5, "text_keep_min": 4},
    {"store": 0.5, "compute": 0.3, "interval": 3, "text_keep": 0.6, "text_keep_min": 20},
    {"store": 0.3, "compute": 0.15, "interval": 3, "text_keep": 0.5, "text_keep_min": 4},
]
AVL_FILTER = [
    {"prefill_keep": 0.5, "prefill_layer": 1},
    {"store": 0.3, "compute": 0.15, "interval": 3, "prefill_keep": 0.5, "prefill_layer": 1},
    {
        "store": 0.3,
        "compute": 0.15,
        "interval": 3,
        "prefill_keep": 0.5,
        "prefill_layer": 1,
        "text_keep": 0.6,
        "text_keep_min": 8,
    },
    {"prefill_keep": 0.5, "prefill_layer": 2},
    {"store": 0.3, "compute": 0.15, "interval": 3, "prefill_keep": 0.5, "prefill_layer": 2},
]
