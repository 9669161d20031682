"""The two demo domains, cardiology in English and contract law in Chinese: facts, texts, and the run."""
