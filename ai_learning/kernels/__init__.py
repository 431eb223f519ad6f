"""What makes the same mathematics fast: nothing here changes a result by more than rounding.

Every function is a drop-in for PyTorch's own operations, which are taken wherever a kernel cannot be.

linear, gelu, split                     what the model's layers call
tied_embedding, frozen_head_loss        what the loss calls
cpu_attention, cpu_mlp, row_layers      attention, an MLP, small layers on a CPU
products, fast_adamw                    large matrix products; AdamW with clipping
…_kernels, loops                        the compiled loops under them, and what all loops share
triton_use, …_triton, …_triton_kernels  GPUs
compile_ops, host_memory                operations in graphs of ``torch.compile``; tensors in large pages
"""
