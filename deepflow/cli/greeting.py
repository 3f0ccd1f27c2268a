"""What `deepflow up` prints when the stack answers; every line of it works as printed."""

import shlex

from deepflow.local.progress import Ready

QUESTION = "What is a task executor?"


def greeting(ready: Ready) -> str:
    lines = [
        "",
        f"Up after {ready.seconds:.1f} s: DeepFlow serves {ready.model} at {ready.urls[0]}/v1",
    ]
    lines += [f"  and at {url}/v1" for url in ready.urls[1:]]
    if ready.device.startswith("emulated:"):
        lines.append(
            f"The device is {ready.device}: answers are made up, only their timing counts."
        )
    lines += ["", "Ask it:", "", *_curl(ready), "", "or from Python, with pip install openai:", ""]
    lines += _python(ready)
    if ready.urls[0].startswith("https:") and ready.ca is None:
        lines += ["", "Ask under a name that the gateways' certificate is for: not this address."]
    lines += ["", f"Logs: {ready.log_dir}", "Stop: Ctrl-C here, or 'deepflow down'", ""]
    return "\n".join(lines)


def _curl(ready: Ready) -> list[str]:
    if ready.makes_embeddings:
        path, question = "embeddings", f'"input": "{QUESTION}"'
    elif ready.has_chat_template:
        path = "chat/completions"
        question = f'"messages": [{{"role": "user", "content": "{QUESTION}"}}], "temperature": 0'
    else:
        path, question = "completions", f'"prompt": "{QUESTION}", "max_tokens": 64'
    trusting = f" --cacert {shlex.quote(str(ready.ca))}" if ready.ca else ""
    return [
        f"curl{trusting} {ready.urls[0]}/v1/{path} -H 'content-type: application/json' \\",
        f"""  -d '{{"model": "{ready.model}", {question}}}'""",
    ]


def _openai_client(ready: Ready) -> list[str]:
    url = f'base_url="{ready.urls[0]}/v1", api_key="none"'
    if ready.ca is None:
        return ["from openai import OpenAI", f"client = OpenAI({url})"]
    return [
        "import ssl",
        "from openai import DefaultHttpxClient, OpenAI",
        f"tls = ssl.create_default_context(cafile={str(ready.ca)!r})",
        f"client = OpenAI({url}, http_client=DefaultHttpxClient(verify=tls))",
    ]


def _python(ready: Ready) -> list[str]:
    head = _openai_client(ready)
    if ready.makes_embeddings:
        return [
            *head,
            f'answer = client.embeddings.create(model="{ready.model}", input="{QUESTION}")',
            "print(answer.data[0].embedding)",
        ]
    if ready.has_chat_template:
        return [
            *head,
            f'question = [{{"role": "user", "content": "{QUESTION}"}}]',
            "answer = client.chat.completions.create(",
            f'    model="{ready.model}", messages=question, temperature=0',
            ")",
            "print(answer.choices[0].message.content)",
        ]
    return [
        *head,
        f'answer = client.completions.create(model="{ready.model}", prompt="{QUESTION}")',
        "print(answer.choices[0].text)",
    ]
