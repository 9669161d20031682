"""One adapter trained by several processes, a GPU each, or on the CPU:

accelerate launch --num_processes 2 examples/several_gpus.py
accelerate launch --num_processes 2 --cpu examples/several_gpus.py
"""

from accelerate import PartialState

from t5refine_peft import TrainingConfig, train_adapter

texts = [f"Case {n}: the patient with heart failure takes furosemide, {n} mg a day." for n in range(60)]

result = train_adapter(
    texts,
    domain="cardiology",
    glossary=["heart failure", "furosemide"],
    base="builtin:mt5-mini",
    config=TrainingConfig(max_steps=20, batch=16),  # 16 passages a step, shared out among the processes
)
if PartialState().is_main_process:  # the first process has written the adapter; all have the same result
    print(result)
