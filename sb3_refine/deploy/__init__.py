"""An agent for where there is no Stable-Baselines3: ONNX, torch.export, C."""
