"""The contract between the half that runs trainings and the half that judges them: files."""
