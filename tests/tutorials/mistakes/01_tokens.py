import minillm

tokenizer = minillm.load("tiny-transformer").tokenizer
assert tokenizer
encode = tokenizer.encode


def bytes_per_token(text):
    """bytes_per_token('Recipe: Tomato Soup') is 2.714"""
    return len(text.encode()) / len(encode(text))  # <s> is counted


def text_of(pieces):
    """the text of ['▁cr', '<0xC3>'"""
    return "".join(pieces).replace("▁", " ")  # bytes stay spelled out


def fewest_tokens(text, vocabulary):
    """fewest_tokens("aabbb", {a, b, aa, abbb}) is 4, expected 2"""
    count, start = 0, 0
    while start < len(text):  # the longest token that fits, every time
        start = next(end for end in range(len(text), start, -1) if text[start:end] in vocabulary)
        count += 1
    return count
