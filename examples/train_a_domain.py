"""Train an adapter on a list of texts and a list of terms, and fill a gap with it: ten lines, offline."""

from t5refine_peft import Restorer, TrainingConfig, train_adapter

texts = [f"Case {n}: the patient with heart failure takes furosemide, {n} mg a day." for n in range(60)]

result = train_adapter(
    texts,  # or a folder, files, a datasets.Dataset
    domain="cardiology",
    glossary=["heart failure", "furosemide"],
    base="builtin:mt5-mini",  # or google/mt5-base, or a model's directory
    config=TrainingConfig(max_steps=20),
)
print(result.path, result.adapter_bytes, "bytes;", result.base_scores, "->", result.adapter_scores)

restorer = Restorer("builtin:mt5-mini")
print(restorer.restore("The patient with heart failure takes ___.", adapter="cardiology"))
