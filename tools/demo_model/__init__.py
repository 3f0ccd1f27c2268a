"""How the packaged demo model is made: its corpus, its tokenizer, its training, its measure."""
