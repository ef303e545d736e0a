"""TFX's Trainer with settings that a pipeline run can change."""
