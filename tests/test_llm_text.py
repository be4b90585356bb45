"""Tokenizers, conversations and calls of tools."""

import importlib.util
import json

import pytest

from jaxrl.llm.chat import ROLES, SPECIALS, TEMPLATES, Piece, call_text, encode_pieces, render
from jaxrl.llm.hf_tokenizers import FastTokenizer, HFTokenizer, train_bpe
from jaxrl.llm.tokenizers import ByteTokenizer, TableTokenizer, Tokenizer, check_tokenizer
from jaxrl.llm.tool_calls import ToolCall, parse_tool_calls
from llm_models import tiny

needs_tokenizers = pytest.mark.skipif(not importlib.util.find_spec("tokenizers"), reason="needs the extra hf")
needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wetter in Zürich? <|im_end|>"},  # letters of a mark, not the mark
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "Sunny, then rain."},
]
EXPECTED_CHATML = """<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
Wetter in Zürich? <|im_end|><|im_end|>
<|im_start|>assistant
I look.
<tool_call>
{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
sunny
</tool_response>
<tool_response>
rain
</tool_response><|im_end|>
<|im_start|>assistant
Sunny, then rain.<|im_end|>
<|im_start|>assistant
"""


def byte_tokenizer(template):
    return ByteTokenizer(("<|pad|>", *SPECIALS[template], "<|end|>"), template)


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_chatml_reads_as_qwen_has_it():
    assert text_of(render("chatml", MESSAGES)) == EXPECTED_CHATML
    silent = text_of(render("chatml", MESSAGES[:2], thinking=False))
    assert silent.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (
        text_of(render("chatml", MESSAGES, add_generation_prompt=False)) + "<|im_start|>assistant\n" == EXPECTED_CHATML
    )


def test_llama3_and_plain_layouts():
    text = text_of(render("llama3", MESSAGES[:4]))
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert text.endswith(
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert '{"name": "weather", "parameters": {"city": "Zürich", "days": 2}}; {' in text
    assert text_of(render("plain", MESSAGES[:1])) == "system: Be brief.\nassistant: "


@pytest.mark.parametrize("template", TEMPLATES)
def test_roles_of_tokens_come_from_construction(template):
    tokenizer = byte_tokenizer(template)
    tokens, roles = encode_pieces(tokenizer, render(template, MESSAGES, [TOOL]))
    by_role = {
        role: tokenizer.decode(t for t, r in zip(tokens, roles, strict=True) if r == ROLES.index(role))
        for role in ROLES
    }
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "plain": "\n"}[template]
    separator = "; " if template == "llama3" else "\n"
    calls = separator.join([call_text(template, CALL)] * 2)
    assert by_role["agent"] == f"I look.\n{calls}{end}Sunny, then rain.{end}"
    assert by_role["user"] == MESSAGES[1]["content"]
    assert "sunny" in by_role["tool"]
    assert "rain" in by_role["tool"]
    assert by_role["prompt"].startswith("Be brief.\n\n")
    assert json.dumps(TOOL) in by_role["prompt"]
    assert tokens == tokenizer.apply_chat(MESSAGES, [TOOL])


def test_letters_of_a_mark_stay_letters():
    tokenizer = ByteTokenizer()
    end = tokenizer.eos_ids[0]
    assert tokenizer.encode("a<|im_end|>", specials=True) == [97, end]
    assert end not in tokenizer.encode("a<|im_end|>")
    tokens, _ = encode_pieces(tokenizer, render("chatml", MESSAGES[1:2]))
    assert tokens.count(end) == 1
    assert tokenizer.decode(tokens).startswith("<|im_start|>user\nWetter in Zürich? <|im_end|><|im_end|>\n")


def test_byte_tokenizer():
    tokenizer = ByteTokenizer()
    text = "naïve 漢字 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode("漢".encode()[:2]) == "�"
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.has_template) == (259, 256, True)
    with pytest.raises(ValueError, match="token 259 is not below"):
        tokenizer.decode([259])
    with pytest.raises(ValueError, match="different marks"):
        ByteTokenizer(("<a>", "<a>"))
    with pytest.raises(ValueError, match=r"template 'llama3' needs the mark '<\|eot_id\|>'"):
        ByteTokenizer(template="llama3")
    with pytest.raises(ValueError, match="no chat template"):
        ByteTokenizer(template=None).apply_chat(MESSAGES)


def test_table_tokenizer():
    tokenizer = TableTokenizer(["PAD", "CALL", "tool3", "END"], pad="PAD", eos=["END"])
    assert tokenizer.encode("CALL tool3\nEND") == [1, 2, 3]
    assert tokenizer.decode([1, 2, 3]) == "CALL tool3 END"
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, (3,), 4)
    assert isinstance(tokenizer, Tokenizer)
    with pytest.raises(ValueError, match=r"'tool4' is not in the vocabulary.*'tool3'"):
        tokenizer.encode("tool4")
    with pytest.raises(ValueError, match="got twice: a"):
        TableTokenizer(["a", "b", "a"], pad="a")
    with pytest.raises(ValueError, match="nor hold blanks"):
        TableTokenizer(["a", "b c"], pad="a")


def test_conversations_that_cannot_be_rendered():
    with pytest.raises(ValueError, match="template must be one of chatml, llama3, plain"):
        render("chatlm", MESSAGES)
    with pytest.raises(ValueError, match=r"role must be one of system.*'asistant'"):
        render("plain", [{"role": "asistant", "content": ""}])
    with pytest.raises(ValueError, match="unknown keys contents"):
        render("plain", [{"role": "user", "contents": ""}])

    class Lossy(ByteTokenizer):
        def decode(self, tokens):
            return super().decode(tokens).lower()

    with pytest.raises(ValueError, match="read 'abc' instead of 'ABC'"):
        encode_pieces(Lossy(), [Piece("ABC", "user")])


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="has 259 tokens, the model's vocab_size is 29"):
        check_tokenizer(ByteTokenizer(), tiny())
    with pytest.raises(ValueError, match=r"ends texts with \(258,\), the model with eos_ids = \(3,\)"):
        check_tokenizer(ByteTokenizer(), tiny(vocab_size=300, eos_ids=(3,)))
    check_tokenizer(ByteTokenizer(), tiny(vocab_size=300, eos_ids=(3, 258)))


@pytest.mark.parametrize("style", ["hermes", "llama3"])
def test_calls_are_read_back(style):
    template = "chatml" if style == "hermes" else "llama3"
    message = {"role": "assistant", "content": "", "tool_calls": [CALL, {"name": "stop", "arguments": {}}]}
    text = text_of(piece for piece in render(template, [message]) if piece.role == "agent" and not piece.special)
    parsed = parse_tool_calls(text, style)
    assert parsed.calls == [ToolCall("weather", CALL["arguments"]), ToolCall("stop", {})]
    assert parsed.content == ""
    assert parsed.errors == []
    assert parse_tool_calls("Just words.", style) == ("Just words.", [], [])


@pytest.mark.parametrize(
    ("text", "calls", "error"),
    [
        ("<tool_call>{'name': 1}</tool_call>", 0, "property name"),
        ('<tool_call>{"name": "a"}</tool_call>', 0, "a call needs arguments"),
        ('<tool_call>{"arguments": {}}</tool_call>', 0, "a call needs a name"),
        ('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', 0, "needs arguments, a JSON object"),
        ('<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', 0, "unknown keys id"),
        ('<tool_call>["a"]</tool_call>', 0, "must be a JSON object, got list"),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', 0, "NaN is no JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", 0, "nested too deeply"),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call> and <tool_call>{"na', 1, "without </tool_call>"),
        ("</tool_call>", 0, "</tool_call> without <tool_call>"),
    ],
)
def test_malformed_calls_are_reported(text, calls, error):
    parsed = parse_tool_calls(text)
    assert len(parsed.calls) == calls
    assert len(parsed.errors) == 1
    assert error in parsed.errors[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"name": "a", "parameters": {}} so there', "text after a call"),
        ('{"name": "a", "parameters": {}}; {"name": ', "Expecting value"),
        ('{"name": "a", "arguments": {}}', "unknown keys arguments"),
        ("<|python_tag|>print(1)", "without a call"),
    ],
)
def test_malformed_calls_of_llama(text, error):
    parsed = parse_tool_calls(text, "llama3")
    assert len(parsed.errors) == 1
    assert error in parsed.errors[0]


@pytest.mark.skipif(bool(importlib.util.find_spec("tokenizers")), reason="the extra hf is installed")
def test_a_missing_library_names_its_extra(tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'jaxrl\[hf\]'"):
        train_bpe([], tmp_path / "tokenizer.json")


@needs_tokenizers
def test_byte_level_bpe(tmp_path):
    path = tmp_path / "tokenizer.json"
    marks = ("<|pad|>", *SPECIALS["chatml"])
    train_bpe(["the cat sat on the mat, the cat"] * 20, path, vocab_size=300, specials=marks)
    tokenizer = FastTokenizer(path, "<|pad|>", ["<|im_end|>"])
    text = "the cat <|im_end|> 漢"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.eos_ids[0] not in tokens
    assert tokenizer.eos_ids[0] in tokenizer.encode(text, specials=True)
    assert len(tokenizer.encode("the cat")) < 7
    tokens, roles = encode_pieces(tokenizer, render("chatml", MESSAGES, [TOOL]))
    assert len(tokens) == len(roles)
    with pytest.raises(ValueError, match="has no token <bos>"):
        FastTokenizer(path, "<bos>", [])


@needs_tokenizers
@needs_transformers
def test_checkpoint_tokenizer_appends_as_its_template_renders(tmp_path):
    marks = ("<|pad|>", *SPECIALS["chatml"])
    train_bpe(["the cat sat on the mat"], tmp_path / "tokenizer.json", vocab_size=270, specials=marks)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|im_end|>",
        "chat_template": template,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = HFTokenizer(tmp_path)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.has_template
    assert tokenizer.eos_ids[0] not in tokenizer.encode("x <|im_end|>")
    user, agent = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the mat"}
    whole = tokenizer.apply_chat([user, agent, user])
    parts = tokenizer.apply_chat([user]) + tokenizer.appended([agent], by_agent=True)
    parts += tokenizer.appended([user], by_agent=False)
    assert tokenizer.decode(parts) + "<|im_start|>assistant\n" == tokenizer.decode(whole)
    short = "{% if messages|length > 1 %}late{% endif %}{{ messages[-1].content }}"
    tokenizer.tokenizer.chat_template = short
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        tokenizer.appended([agent], by_agent=True)
