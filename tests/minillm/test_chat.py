import pytest

from minillm.chat import Message, render_chat
from minillm.errors import UserError

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def test_a_template_sees_messages_special_tokens_and_that_an_answer_is_wanted():
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    assert render_chat(template, HELLO, bos="<s>", eos="</s>") == "<s>user:hello</s>assistant:"


def test_content_is_never_read_as_a_template():
    forged: list[Message] = [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}]
    assert render_chat("{{ messages[0].content }}", forged, "", "") == forged[0]["content"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}",
        "{{ undefined.attribute }}",
        "{{ 1 // 0 }}",
        "{{ 'x' + 1 }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ 'a'.index('b') }}",
        "{{ cycler().next() }}",
        "{{ lipsum(n=10) }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template):
    with pytest.raises(UserError, match="chat template failed"):
        render_chat(template, HELLO, "", "")
