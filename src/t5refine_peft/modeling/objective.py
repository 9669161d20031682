"""What training minimises: the packed forward and the loss over the frozen head together."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from t5refine_peft.modeling.base import Base
from t5refine_peft.modeling.forward import LabelStates, packed_forward
from t5refine_peft.modeling.loss import frozen_head_cross_entropy


def token_loss(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], base: Base, *, checkpointed_blocks: int = 0
) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy in fp32 of the labels that are not -100, and their number; no logits are held.

    Equals `F.cross_entropy` on the model's own logits. `checkpointed_blocks`: see `packed_forward`.
    """
    core: PreTrainedModel = base.model
    with packed_forward(core, checkpointed_blocks=checkpointed_blocks):
        states: LabelStates = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"]
        )
    loss = frozen_head_cross_entropy(states.hidden, core.get_output_embeddings(), states.labels, num_items_in_batch=1)
    return loss, int((states.labels != -100).sum())
