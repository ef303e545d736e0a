"""TFX's Trainer with settings that a run can change."""
