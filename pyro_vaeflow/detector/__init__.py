"""The scikit-learn face, its saved folder, and tables that no memory holds."""
