"""How llama.cpp wants a model: its architectures, tensors and vocabularies, and the GGUF container."""
