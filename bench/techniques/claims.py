"""What is claimed of each technique, in the words of the table: how much, of what, and where it says so.

They are about larger models on accelerators, but for DistilBERT, which was timed on a CPU. A figure stands in the
abstract of what is named if nothing else is said here.

    GPTQ        table 6: ms a token of OPT-175B, 589 to 130 on A6000s and 230 to 71 on A100s, in 3 bits, not in 4
    Orca        at the same latency, over FasterTransformer with GPT-3 175B
    Anyscale    "How continuous batching enables 23x throughput in LLM inference", 2023: 8x is what batching does,
                23x comes with vLLM's memory. The 2x to 4x of vLLM (arXiv:2309.06180) are over FasterTransformer and
                over Orca, which batches continuously itself: they are what paging is worth
    Minitron    introduction: Llama 3.1 8B to 4B in TensorRT-LLM, width and depth; both were taught again
    DistilBERT  table 3: 668 s to 410 s, with 66 million parameters of 110
"""

CLAIMED = {
    "INT8": "up to 1.56x over FP16 (SmoothQuant, arXiv:2211.10438)",
    "INT4": "3.24x to 4.53x over FP16, with 3 bits (GPTQ, arXiv:2210.17323)",
    "speculative decoding": "2x to 3x, T5-XXL (Leviathan et al., arXiv:2211.17192)",
    "continuous batching": "8x of throughput (Anyscale, 2023) to 36.9x (Orca, OSDI 2022)",
    "structured pruning, 50 %": "1.8x by width, 2.7x by depth (Minitron, 8B to 4B, arXiv:2408.11796)",
    "FlashAttention": "3x in training GPT-2, 1,024 tokens (FlashAttention, arXiv:2205.14135)",
    "distillation": "1.6x (DistilBERT, arXiv:1910.01108)",
}
