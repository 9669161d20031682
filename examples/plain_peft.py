"""An adapter of ours in plain PEFT and transformers: its directory is PEFT's own format."""

from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5refine_peft import TrainingConfig, base_directory, train_adapter

texts = [f"Case {n}: the patient with heart failure takes furosemide, {n} mg a day." for n in range(60)]
terms = ["heart failure", "furosemide"]
config = TrainingConfig(max_steps=20)
result = train_adapter(texts, domain="cardiology", glossary=terms, base="builtin:mt5-mini", config=config)

base = base_directory("builtin:mt5-mini")  # of a hub model, its name
model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), result.path)
tokenizer = AutoTokenizer.from_pretrained(base)
inputs = tokenizer("The patient with heart failure takes <extra_id_0>, 20 mg a day.", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0]))
