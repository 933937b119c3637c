"""The adapter and the vision tower that the families with multimodal rotary positions (M-RoPE) share."""
