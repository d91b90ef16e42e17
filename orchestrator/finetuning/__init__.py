"""Fine-tuning of exported children, or any model of the hub, on GLUE and SQuAD."""
