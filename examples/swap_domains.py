"""Two domains on one base in memory: an adapter for each call, for each text of a batch, or none."""

from t5refine_peft import Restorer, TrainingConfig, load_base, train_adapter

corpora = {
    "cardiology": [f"Case {n}: the patient with heart failure takes furosemide, {n} mg a day." for n in range(60)],
    "contract-law": [f"第{n}号合同：出卖人应当交付标的物，买受人应当支付{n}元价款。" for n in range(60)],
}
terms = {"cardiology": ["heart failure", "furosemide"], "contract-law": ["出卖人", "标的物", "买受人"]}

base = load_base("builtin:mt5-mini")  # loaded once, for both trainings and for restoring
for domain, texts in corpora.items():
    train_adapter(texts, domain=domain, glossary=terms[domain], base=base, config=TrainingConfig(max_steps=20))

restorer = Restorer(base, adapters_dir="adapters")
english, chinese = "The patient with heart failure takes ___.", "出卖人应当交付□□□。"

for restored in restorer.restore([english, chinese], adapter=["cardiology", "contract-law"]):  # one batch
    print("each its own:", restored.text)

restorer.set_adapter("cardiology")  # for calls that name none
print("the default: ", restorer.restore(english).text)
print("another:     ", restorer.restore(english, adapter="contract-law").text)
with restorer.disable_adapter():
    print("the base:    ", restorer.restore(english).text)
