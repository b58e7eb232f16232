"""The functions behind `import cpn_fast`: typed, silent, and each imported when it is first asked for."""
