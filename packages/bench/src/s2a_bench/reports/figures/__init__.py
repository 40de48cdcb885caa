"""Figures of the reports: drawn by matplotlib, as SVG that suits light and dark pages and print."""
