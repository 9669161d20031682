#!/usr/bin/env bash
# From a folder of documents to an adapter and a report: folder_to_report.sh FOLDER DOMAIN [BASE]
set -euo pipefail
folder=$1 domain=$2 base=${3:-builtin:mt5-mini}

# The term list is what you know better than any program: edit the proposed one, and run this again.
if [ ! -e "$domain-terms.txt" ]; then
  t5refine prepare "$folder" --suggest-terms --base "$base" --output "$domain-terms.txt"
fi
t5refine prepare "$folder" --terms "$domain-terms.txt" --base "$base" --output "$domain-prepared"
t5refine train "$domain-prepared" --domain "$domain" --base "$base" ${STEPS:+--max-steps "$STEPS"}
t5refine evaluate --data "$domain-prepared" --adapter "$domain" --output "$domain-report.html"
t5refine adapters pack "$domain"
