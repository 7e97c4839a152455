"""Which options of the encoder exclude each other. Imported by every command, so nothing slow is imported here."""

from engine.command_line import UserError


def refuse_backbone(config):
    """UserError for options of the encoder and of its adapter that exclude each other."""
    pretrained = config.encoder == "transformer" and (config.pretrain_model_path or not config.do_train)
    if config.lora_rank and not pretrained:
        raise UserError("--lora_rank adapts a pretrained encoder: it needs --pretrain_model_path")
    if config.lora_rank and config.special_tokens:
        added = "--special_tokens adds word vectors, which --lora_rank would neither train nor save"
        raise UserError(f"{added}; drop one of them")
    if config.lora_rank and (config.freeze_layers or config.unfreeze_layers):
        raise UserError("--lora_rank freezes the encoder by itself; leave out --freeze_layers and --unfreeze_layers")
    if config.load_dtype == "bf16" and not config.lora_rank and config.freeze_layers != -1:
        raise UserError("--load_dtype=bf16 is for weights that do not train: add --lora_rank or --freeze_layers all")
    if config.load_dtype == "bf16" and not pretrained:
        raise UserError("--load_dtype=bf16 is for pretrained weights: it needs --pretrain_model_path")
    if config.load_dtype == "bf16" and config.use_smart:
        fine = "--load_dtype=bf16 does not resolve the small noise of --use_smart"
        raise UserError(f"{fine}; take fp32, or --use_freelb")
    if config.gradient_checkpointing and config.encoder == "bilstm":
        raise UserError("--gradient_checkpointing: a BiLSTM has none; leave it out")
