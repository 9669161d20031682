"""Our collator and callbacks in Hugging Face's own Seq2SeqTrainer, with PEFT's own adapter: nothing else of ours."""

from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5refine_peft import (
    CorruptionConfig,
    CorruptionDataset,
    DataCollatorForTermCorruption,
    DelayedEarlyStoppingCallback,
    Glossary,
    ProgressCallback,
    load_base,
    prepare_dataset,
)

texts = [f"Case {n}: the patient with heart failure takes furosemide, {n} mg a day." for n in range(60)]

base = load_base("builtin:mt5-mini", precision="float32")  # base.model is transformers' own class, its head put right
splits = prepare_dataset(texts, vocabulary=base.vocabulary, glossary=Glossary(["heart failure", "furosemide"]))
lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, target_modules="all-linear", use_rslora=True)

trainer = Seq2SeqTrainer(
    model=get_peft_model(base.model, lora),
    args=Seq2SeqTrainingArguments(
        output_dir="plain",
        max_steps=10,
        per_device_train_batch_size=16,  # without accumulation: the Trainer takes mT5's mean loss for a sum
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=5,
        logging_steps=5,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=CorruptionDataset(splits["train"], fresh=True),  # masked afresh in each epoch
    eval_dataset=CorruptionDataset(splits["validation"], fresh=False),
    data_collator=DataCollatorForTermCorruption(base.vocabulary, CorruptionConfig()),
    callbacks=[DelayedEarlyStoppingCallback(start_step=0.5, patience=2, window=1), ProgressCallback()],
)
trainer.pop_callback(PrinterCallback)  # ours tells the same, in lines to read
trainer.train()
trainer.save_model("plain/adapter")
print("loss on the validation split:", trainer.evaluate()["eval_loss"])
