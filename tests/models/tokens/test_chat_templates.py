"""Chats as transformers' `apply_chat_template` renders them: names, variables, system prompts."""

import json

import pytest
import tokenizer_folders
import transformers

from models.tokens import chat_template
from models.tokens.chat_template import check_messages, render_chat
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError

CHATML = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}quick{% endif %}"
)
TOOLS = "{{ bos_token }}tools {% for m in messages %}{{ m | tojson }}{% endfor %}{{ depth or 0 }}"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role\nnot supported') }}{% endif %}{{ m.content }}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
NAMED = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOLS}]
FORMS = {
    "list": {"tokenizer_config.json": {"chat_template": NAMED}},
    "file": {"chat_template.jinja": CHATML},
    "text": {"tokenizer_config.json": {"chat_template": CHATML}},
    "folder": {
        "chat_template.jinja": CHATML,
        "additional_chat_templates/tool_use.jinja": TOOLS,
        "additional_chat_templates/short.jinja": DEAF,
    },
    "folder and list": {
        "additional_chat_templates/tool_use.jinja": TOOLS,
        "tokenizer_config.json": {"chat_template": NAMED},
    },
    "file over list": {
        "chat_template.jinja": DEAF,
        "tokenizer_config.json": {"chat_template": NAMED},
    },
    "no default": {"tokenizer_config.json": {"chat_template": NAMED[1:]}},
}
HELLO = [{"role": "user", "content": "hello world"}]
CHATS = [
    HELLO,
    [{"role": "system", "content": "the fox"}, *HELLO],
    [*HELLO, {"role": "assistant", "content": "says", "thinking": "quick", "name": None}, *HELLO],
    [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{"n": 1.5}]}, *HELLO],
    [{"role": "user", "content": [{"type": "text", "text": "hello"}], "extra": (1, True, None)}],
]


def folder_of(path, files):
    (path / "additional_chat_templates").mkdir()
    settings = files.get("tokenizer_config.json", {})
    usual = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    backend = tokenizer_folders.byte_level().to_str()
    whole = {**files, "tokenizer.json": backend, "tokenizer_config.json": {**usual, **settings}}
    return tokenizer_folders.write(path, whole)


def theirs_of(tokenizer, chat, **options):
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, **options)["input_ids"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_name_equals_transformers(tmp_path, form):
    folder_of(tmp_path, FORMS[form])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    many = theirs.chat_template if isinstance(theirs.chat_template, dict) else {}
    for found in (loaded, Tokenizer.from_object(theirs), Tokenizer.from_files(loaded.to_files())):
        assert sorted(found.chat_templates) == sorted(many or ["default"])
        assert found.note is None
        for chat in CHATS:
            for name in [*many, CHATML, "{{ messages[0].role }} {{ eos_token }}"]:
                expected = theirs_of(theirs, chat, chat_template=name)
                assert found.chat(chat, chat_template=name) == expected, name
            if "default" in found.chat_templates:
                assert found.chat(chat) == theirs_of(theirs, chat)
    if "default" not in loaded.chat_templates:
        with pytest.raises(ValueError, match="no default"):
            theirs_of(theirs, HELLO)
        with pytest.raises(ConfigError, match=r"no default: name one of tool_use with chat_templ"):
            loaded.chat("hello")


def test_variables_equal_transformers(tmp_path):
    folder_of(tmp_path, FORMS["list"])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = Tokenizer.load(tmp_path)
    for name, variables in [
        ("default", {"enable_thinking": False}),
        ("tool_use", {"depth": {"a": [1, 2.5, None, "x"]}, "bos_token": "fox"}),
    ]:
        options = {"chat_template": name}
        expected = theirs_of(theirs, HELLO, **options, **variables)
        assert found.chat(HELLO, template_args=variables, **options) == expected
        assert found.chat("hello world", template_args=variables, **options) == expected
        assert expected != theirs_of(theirs, HELLO, **options)


def test_a_system_prompt_is_a_message_in_front(tmp_path):
    folder_of(tmp_path, FORMS["list"])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = Tokenizer.load(tmp_path)
    expected = theirs_of(theirs, [{"role": "system", "content": "the fox"}, *HELLO])
    assert found.chat("hello world", system="the fox") == expected
    assert found.chat(HELLO, system="the fox") == expected
    for system, message in [
        (" ", "system prompt is empty"),
        (7, "no text"),
    ]:
        with pytest.raises(ConfigError, match=message):
            found.chat(HELLO, system=system)
    with pytest.raises(ConfigError, match="the chat has a system message: leave it out there"):
        found.chat(CHATS[1], system="the fox")
    with pytest.raises(ModelError, match=r"failed \(System role not supported\); change"):
        found.chat("hello", system="the fox", chat_template=STRICT)
    with pytest.raises(ConfigError, match="leaves system prompts out: put the text into the"):
        found.chat("hello", system="the fox", chat_template=DEAF)


REFUSED = [
    ({"template_args": {"enable_thinkng": False}}, r"'enable_thinkng' \(did you mean 'enable_thi"),
    ({"template_args": {"zzz": 1}}, r"no variable 'zzz' \(leave it out\); it reads: enable_think"),
    ({"template_args": {"tools": []}}, "'tools': that is an argument of apply_chat_template"),
    ({"template_args": {"messages": []}}, "'messages': that is an argument"),
    ({"template_args": {"enable_thinking": object()}}, "holds object: give strings"),
    ({"template_args": ["enable_thinking"]}, "template_args is list: give a dictionary"),
    ({"chat_template": "tool_us"}, "no chat template 'tool_us': it has default, tool_use"),
    ({"chat_template": 7}, "chat_template is int"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_by_name(tmp_path, options, message):
    found = Tokenizer.load(folder_of(tmp_path, FORMS["list"]))
    with pytest.raises(ConfigError, match=message):
        found.chat("hello", **options)


def test_a_model_without_a_template(tmp_path):
    found = Tokenizer.load(folder_of(tmp_path, {}))
    assert found.chat("hello") == found.encode("hello")
    for options in ({"system": "the fox"}, {"template_args": {"x": 1}}):
        with pytest.raises(ConfigError, match=f"so {next(iter(options))} is of no use"):
            found.chat("hello", **options)
    with pytest.raises(ConfigError, match="so it takes no chats: give a text, or a template"):
        found.chat(HELLO)
    with pytest.raises(ConfigError, match="no chat template 'default': it has none"):
        found.chat("hello", chat_template="default")
    assert found.chat(HELLO, chat_template="{{ messages[0].role }}") == found.encode("user")


@pytest.mark.parametrize(
    "template",
    [
        "{% set x = 'a' %}{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}{{ x }}",
        "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}"
        "{{ n.x }}{{ namespace({'a': 2}, b=3).a }}{{ dict(a=1) }}{{ dict.fromkeys([1], 2) }}",
        "{% for m in messages %}\n  {% if loop.first %}\n  a\n  {% continue %}{% endif %}\n"
        "b{% endfor %}{{ strftime_now('%') }}",
        "{% for m in messages %}{{ m }}{{ m.extra }}{% endfor %}"
        "{{ messages[0]['content'] | tojson(indent=2) }}{{ 'é' | tojson(ensure_ascii=true) }}",
    ],
)
def test_what_templates_use(tmp_path, template):
    theirs = transformers.AutoTokenizer.from_pretrained(folder_of(tmp_path, {}))
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    for chat in CHATS:
        assert render_chat(template, chat, {}) == theirs.apply_chat_template(chat, **options)


@pytest.mark.parametrize(
    "template",
    [
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.__class__ }}{{ dict.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ variable.append(1) }}",
    ],
)
def test_templates_stay_in_their_sandbox(template):
    with pytest.raises(ModelError, match="chat template failed"):
        render_chat(template, HELLO, {}, {"variable": []} if "variable" in template else {})


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "the chat is empty"),
        ([*HELLO, {"role": "assistant", "content": "x"}], "ends with the assistant's message"),
        ([{"role": "user"}], 'needs a "role" and a "content"'),
        ([{"content": "x"}], 'needs a "role" and a "content"'),
        (["hello"], 'needs a "role" and a "content"'),
        ([{"role": 7, "content": "x"}], "must be strings"),
        ([{"role": "user", "content": 7}], "must be strings"),
        ([{"role": "user", "content": []}], "must be strings"),
        ([{"role": "user", "content": [{"type": "image"}]}], "of type 'image': only text"),
    ],
)
def test_messages_are_checked(chat, message):
    with pytest.raises(ConfigError, match=message):
        check_messages(chat)


def test_templates_of_gguf():
    metadata = {
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.tool_use": "b",
        "tokenizer.chat_templates": ["tool_use"],
    }
    from models.tokens.gguf_tokenizer import templates_of_gguf

    assert templates_of_gguf(metadata) == {"default": "a", "tool_use": "b"}
    assert templates_of_gguf({}) == {}


@pytest.mark.parametrize("damaged", [7, ["x"], {"default": 7}, [{"name": "default"}]])
def test_damaged_published_templates(tmp_path, damaged):
    files = Tokenizer.load(folder_of(tmp_path, FORMS["list"])).to_files()
    config = {**json.loads(files["tokenizer_config.json"]), "chat_template": damaged}
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer.from_files({**files, "tokenizer_config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set m = 'x' * 9999 %}{% for a in m %}{% for b in m %}{% for c in m %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
        "{% for a in [[1, 2]] recursive %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% set d = 1 %}{% endfor %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(template, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.05)
    with pytest.raises(ModelError, match=r"failed \(it takes longer than 0\.05 s\)"):
        render_chat(template, HELLO, {})


@pytest.mark.parametrize(
    "text",
    ["9 ** 9999999", "'ab' * 9999999", "9999999 * [1]", "(2 ** 4000000) * (2 ** 4000000)"],
)
def test_a_template_makes_no_huge_value_in_one_operation(text):
    with pytest.raises(ModelError, match="makes a value that is too large"):
        render_chat("{{ (" + text + ") and 1 }}", HELLO, {})


def test_a_template_may_multiply():
    template = "{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 'a' * -1 }}{{ 1.5 * 2 }}"
    assert render_chat(template, HELLO, {}) == "ababab10240.53.0"
