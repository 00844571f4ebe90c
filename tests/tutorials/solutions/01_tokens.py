import re

import minillm

tokenizer = minillm.load("tiny-transformer").tokenizer
assert tokenizer
encode = tokenizer.encode


def bytes_per_token(text):
    return len(text.encode()) / len(encode(text, special=False))


def text_of(pieces):
    out = b""
    for piece in pieces:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        out += bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
    return out.decode()


def fewest_tokens(text, vocabulary):
    least = [0]
    for end in range(1, len(text) + 1):
        least.append(min(least[start] + 1 for start in range(end) if text[start:end] in vocabulary))
    return least[-1]
