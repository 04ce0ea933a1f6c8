"""Tables of numbers become one page.

compare     scores of several runs -> means, spreads, paired differences, as text, CSV, JSON or Markdown
figures     log records, label volumes and case counts -> pictures, as bytes
page        all of it -> one HTML file that needs nothing else
"""
