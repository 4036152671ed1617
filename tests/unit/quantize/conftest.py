import families

bases, text = families.bases, families.text
