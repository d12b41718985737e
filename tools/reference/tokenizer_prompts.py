#!/usr/bin/env python3
"""Makes tests/inputs/data/prompts.json: chat templates as published for models of the families avl serves, and the
texts that `transformers` renders with them.

    python3 tools/reference/tokenizer_prompts.py

Needs transformers 4.46 and jinja2. The templates are those of the named public repositories; each entry holds what a
model directory would hold, and for each conversation the rendered text, or null where the template refuses it (or
would drop a message).
"""

import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parents[2] / "tests" / "inputs" / "data" / "prompts.json"

IMAGES = "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
FIRST = "{# Render all images first #}"
NEXT = "{# Render all text next #}"
PROMPT = "{% if add_generation_prompt %}"


def both_roles(expression):
    """The texts, once plain and once marked as generated."""
    return (NEXT + "{% if message['role'] != 'assistant' %}" + TEXTS + "{{ " + expression + "}}{% endfor %}{% else %}"
            + TEXTS + "{% generation %}{{ " + expression + "}}{% endgeneration %}{% endfor %}{% endif %}")


# llava-hf/llava-1.5-7b-hf, llava-1.5-13b-hf, llava-v1.6-vicuna-7b-hf, llava-v1.6-vicuna-13b-hf
VICUNA = ("{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
          "{% endif %}" + FIRST + IMAGES + "{{ '<image>\\n' }}{% endfor %}" + both_roles("content['text'] + ' '")
          + "{% endfor %}" + PROMPT + "{{ 'ASSISTANT:' }}{% endif %}")


def next_mistral(end):
    return ("{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' + "
            "message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
            + FIRST + IMAGES + "{{ '<image>\\n' }}{% endfor %}" + NEXT + TEXTS + "{{ content['text'] }}{% endfor %}"
            "{{' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '" + end
            + "'}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
            "{% endfor %}")


# llava-hf/llava-onevision-qwen2-7b-ov-hf, llava-next-72b-hf
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}" + FIRST + IMAGES
          + "{{ '<image>\\n' }}{% endfor %}" + both_roles("content['text'] ") + "{{'<|im_end|>' + '\\n'}}{% endfor %}"
          + PROMPT + "{{ '<|im_start|>assistant\\n' }}{% endif %}")
# llava-hf/llava-v1.6-34b-hf
CHATML_34B = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}" + FIRST + IMAGES
              + "{{ '<image>' }}{% endfor %}" + both_roles("'\\n' + content['text'] ") + "{{'<|im_end|>'}}{% endfor %}"
              + PROMPT + "{{ '<|im_start|>assistant\\n' }}{% endif %}")
# llava-hf/llama3-llava-next-8b-hf
LLAMA3_NEXT = ("{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'}}"
               + FIRST + IMAGES + "{{ '<image>' }}{% endfor %}" + NEXT + TEXTS
               + "{{ '\\n' + content['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}" + PROMPT
               + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
# meta-llama/Meta-Llama-3-8B-Instruct
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
          "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
          "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
          + PROMPT + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
ALTERNATE = ("{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
             "alternate user/assistant/user/assistant/...') }}{% endif %}")
# meta-llama/Llama-2-7b-chat-hf
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
          "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}"
          "{% endif %}{% for message in loop_messages %}" + ALTERNATE + "{% if loop.index0 == 0 and system_message != "
          "false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
          "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
          "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + "
          "eos_token }}{% endif %}{% endfor %}")
# mistralai/Mistral-7B-Instruct-v0.2 and v0.1
MISTRAL = ("{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
           "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
           "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL_01 = MISTRAL.replace("+ eos_token}}", "+ eos_token + ' ' }}")
# Qwen/Qwen2-7B-Instruct, Qwen1.5
QWEN2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou "
         "are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
         "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}" + PROMPT + "{{ '<|im_start|>assistant\\n' }}{% endif %}")
# 01-ai/Yi-34B-Chat and others
CHATML_TEXT = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
               "+ '\\n'}}{% endfor %}" + PROMPT + "{{ '<|im_start|>assistant\\n' }}{% endif %}")
# NousResearch/Hermes-2-Pro-Mistral-7B before its tools, and others: the condition is named at the start, too
CHATML_GUARDED = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
                  + CHATML_TEXT)

TEMPLATES = [  # name, kind, template, made for parts, where it stands, bos, eos
    ("llava-1.5", "vicuna", VICUNA, True, "chat_template.json", "<s>", "</s>"),
    ("llava-next-mistral", "mistral", next_mistral("<\\\\s> "), True, "chat_template.json", "<s>", "</s>"),
    ("llava-next-mistral-newer", "mistral", next_mistral("</s> "), True, "chat_template.jinja", "<s>", "</s>"),
    ("llava-onevision", "chatml", CHATML, True, "chat_template.json", "<|endoftext|>", "<|im_end|>"),
    ("llava-next-34b", "chatml", CHATML_34B, True, "processor_config.json", "<s>", "<|im_end|>"),
    ("llama3-llava-next", "llama-3", LLAMA3_NEXT, True, "tokenizer_config.json", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama-3", "llama-3", LLAMA3, False, "tokenizer_config.json", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama-2", "llama-2", LLAMA2, False, "tokenizer_config.json", "<s>", "</s>"),
    ("mistral-0.2", "mistral", MISTRAL, False, "list", "<s>", "</s>"),
    ("mistral-0.1", "mistral", MISTRAL_01, False, "tokenizer_config.json", "<s>", "</s>"),
    ("qwen2", "chatml", QWEN2, False, "tokenizer_config.json", "<|endoftext|>", "<|im_end|>"),
    ("chatml", "chatml", CHATML_TEXT, False, "tokenizer_config.json", "<s>", "</s>"),
    ("chatml-guarded", "chatml", CHATML_GUARDED, False, "tokenizer_config.json", "<s>", "<|im_end|>"),
]
I = None  # a picture
CONVERSATIONS = [  # (role, parts)
    [("user", ["Hello"])],
    [("user", [I, "What is this?"])],
    [("user", ["What is this?", I])],
    [("user", [I, "Compare", I, " them."])],
    [("user", [I])],
    [("system", ["Be brief."]), ("user", [I, "What is this?"])],
    [("user", [I, "What is this?"]), ("assistant", ["A cat."]), ("user", ["Which colour?"])],
    [("user", [I, "One"]), ("assistant", ["A."]), ("user", [I, I, "Two"]), ("assistant", [" B.\n"]), ("user", ["  C  "])],
    [("system", ["S "]), ("user", ["a\nb"]), ("assistant", ["c"]), ("user", ["é漢"])],
    [("user", ["a"]), ("assistant", ["b"])],
    [("user", ["a"]), ("user", ["b"])],
    [("assistant", ["a"]), ("user", ["b"])],
    [("user", ["a"]), ("system", ["b"]), ("user", ["c"])],
    [("system", ["s"]), ("user", [" padded "])],
    [("user", ["\u3000\x1c padded\x85\x1f"])],
]


def content(parts, for_parts):
    """As the template wants it: a list, or one string with the pictures in front."""
    if for_parts:
        return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return "<image>\n" * sum(p is None for p in parts) + "".join(p for p in parts if p is not None)


def main():
    entries = []
    for name, kind, source, for_parts, place, bos, eos in TEMPLATES:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos)
        rendered = []
        for conversation in CONVERSATIONS:
            messages = [{"role": r, "content": content(p, for_parts)} for r, p in conversation]
            try:
                text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False,
                                                     add_generation_prompt=True)
            except TemplateError:
                text = None
            if name == "llama-2" and any(r == "system" for r, _ in conversation[1:]):
                text = None  # the template drops such a message without a word
            rendered.append(text)
        entries.append({"name": name, "kind": kind, "place": place, "template": source, "bos": bos, "eos": eos,
                        "rendered": rendered})
    data = {"conversations": [[{"role": r, "parts": p} for r, p in c] for c in CONVERSATIONS], "templates": entries}
    OUT.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
